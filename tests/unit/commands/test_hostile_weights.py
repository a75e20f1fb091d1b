"""Every command with hostile weights: a readable error, no code run, nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tools import hostile
from tests.unit.lorafile.helpers import lora_tensors, small_layers
from tests.unit.training_helpers import configuration, train_here
from trainer.cli import main
from trainer.core.errors import UserError
from trainer.runs import events

Command = Callable[[Path], list[str]]
UNET = "model.diffusion_model.middle_block.1.proj_in.weight"
VAE = "first_stage_model.encoder.conv_in.weight"
NAMES = sorted(hostile.weights(Path()))


@pytest.fixture
def commands(tmp_path: Path, shallow_checkpoint: Path, dataset_folder: Path) -> dict[str, Command]:
    """Every command that reads weights, with the path of a file."""
    good = tmp_path / "good lora.safetensors"
    save_file(lora_tensors(small_layers()), good)
    out, settings = str(tmp_path / "out.safetensors"), tmp_path / "run.json"

    def train(path: Path) -> list[str]:
        settings.write_text(configuration(path, dataset_folder, tmp_path / "runs").to_json(), encoding="utf-8")
        return ["train", str(settings), "--dry-run"]

    def go_on(path: Path) -> list[str]:
        config = configuration(shallow_checkpoint, dataset_folder, tmp_path / "runs", {"base.lora": str(path)})
        settings.write_text(config.to_json(), encoding="utf-8")
        return ["train", str(settings), "--dry-run"]

    sample = ["sample", "--prompt", "x", "--steps", "1", "--width", "64", "--height", "64", "--out", str(tmp_path / "pictures")]
    return {
        "train": train,
        "train from a LoRA": go_on,
        "sample": lambda path: [*sample, "--base", str(path)],
        "sample with a LoRA": lambda path: [*sample, "--base", str(shallow_checkpoint), "--lora", str(path)],
        "info": lambda path: ["info", str(path)],
        "export": lambda path: ["export", str(path), out],
        "merge": lambda path: ["export", str(good), out, "--merge", str(path)],
        "merge into a checkpoint": lambda path: ["export", str(good), out, "--into-checkpoint", str(path)],
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_command_rejects_hostile_weights(
    name: str, commands: dict[str, Command], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, mark = tmp_path / name, tmp_path / "it ran"
    hostile.weights(mark)[name](path)
    before = {each for each in tmp_path.rglob("*") if "runs" not in each.parts}
    for title, command in commands.items():
        status = main(command(path))
        output = capsys.readouterr().err
        assert status == 1, (title, output)
        assert output.startswith("error: "), (title, output)
        assert "Traceback" not in output
        assert len(output) < 2000
    after = {each for each in tmp_path.rglob("*") if "runs" not in each.parts and each.name != "run.json"}
    assert after == before
    assert not mark.exists()


@pytest.mark.parametrize(
    ("key", "change", "kind"),
    [
        (UNET, lambda tensor: tensor * float("nan"), "nan"),
        (VAE, lambda tensor: tensor * float("nan"), "checkpoint"),
        (UNET, lambda tensor: tensor[:-1], "checkpoint"),
        (UNET, lambda tensor: tensor.flatten(), "checkpoint"),
        (VAE, lambda tensor: torch.zeros(()), "checkpoint"),
        ("model.diffusion_model.input_blocks.0.0.weight", lambda tensor: tensor.flatten(), "checkpoint"),
        ("cond_stage_model.transformer.text_model.embeddings.token_embedding.weight", lambda tensor: tensor[0], "checkpoint"),
    ],
)
@pytest.mark.slow
def test_a_base_with_wrong_numbers_or_shapes_is_reported(
    key: str, change: Callable[[torch.Tensor], torch.Tensor], kind: str, shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = hostile.altered(shallow_checkpoint, tmp_path / "lying.safetensors", key, change)
    config = configuration(path, dataset_folder, tmp_path / "runs")
    (tmp_path / "run.json").write_text(config.to_json(), encoding="utf-8")
    if main(["train", str(tmp_path / "run.json"), "--dry-run"]):  # seen before anything heavy
        output = capsys.readouterr().err
        assert output.startswith("error: ")
    else:
        error = train_here(config).told[-1]
        assert isinstance(error, events.Error)
        output = f"{error.message} {error.hint}"
        assert error.kind == kind, output
    assert "lying.safetensors" in output


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["nan", "shape", "rank"])
def test_training_does_not_continue_from_a_lora_with_wrong_numbers_or_shapes(
    wrong: str, shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    first = train_here(configuration(shallow_checkpoint, dataset_folder, tmp_path / "first", {"training.max_steps": 1}))
    tensors = load_file(first.run.lora)
    key = next(name for name in tensors if name.endswith("lora_down.weight"))
    if wrong == "nan":
        tensors[key].fill_(float("nan"))
    elif wrong == "shape":
        tensors[key] = torch.zeros(tensors[key].shape[0], 7)
    else:
        tensors[key] = tensors[key][:1].contiguous()
    path = tmp_path / "lying.safetensors"
    save_file(tensors, path)
    with pytest.raises(UserError) as caught:  # before the child starts, or from the child
        event = train_here(configuration(shallow_checkpoint, dataset_folder, tmp_path / "runs", {"base.lora": str(path)})).told[-1]
        assert isinstance(event, events.Error)
        raise UserError(event.message, event.hint, kind=event.kind)
    assert caught.value.kind == "lora"
    assert "lying.safetensors" in caught.value.message
