"""Every command with every kind of hostile file: a readable error, no code run, nothing written."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.tools import hostile
from tests.unit.lorafile.helpers import lora_tensors, small_layers
from tests.unit.training_helpers import configuration, make_pictures, train_here
from trainer.cli import main
from trainer.core.errors import UserError
from trainer.core.files.reading import sha256_file
from trainer.dataset import open_dataset
from trainer.families import open_checkpoint
from trainer.runs import events
from trainer.runs.event_log import read_events
from trainer.runs.run_folder import RunFolder

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


# pictures and archives


@pytest.fixture(scope="module")
def vast() -> bytes:
    return hostile.vast_picture()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("command", ["prepare", "regularisation", "sample", "thumbnail"])
def test_every_command_rejects_an_image_of_60000_pixels_a_side(
    command: str, vast: bytes, shallow_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(vast) < 3_000_000
    folder = tmp_path / "pictures"
    folder.mkdir()
    path = folder / "vast.png"
    path.write_bytes(vast)
    good, lora = make_pictures(tmp_path / "good", 1), tmp_path / "lora.safetensors"
    save_file(lora_tensors(small_layers()), lora)
    arguments = {
        "prepare": ["prepare", str(folder), "--out", str(tmp_path / "out"), "--trigger", "x"],
        "regularisation": ["prepare", str(good), "--out", str(tmp_path / "out"), "--trigger", "x", "--regularisation", str(path), "--json"],
        "sample": ["sample", "--base", str(shallow_checkpoint), "--prompt", "x", "--image", str(path), "--out", str(tmp_path / "out")],
        "thumbnail": ["export", str(lora), str(tmp_path / "out.safetensors"), "--thumbnail", str(path)],
    }
    status = main(arguments[command])
    output = capsys.readouterr()
    if command == "regularisation":  # the other pictures are prepared, and the report names what was left out
        assert status == 0
        assert "vast.png" in output.out and ("too large" in output.out or "bomb" in output.out)
        return
    assert status == 1
    assert output.err.startswith("error: ")
    assert "vast.png" in output.err


def test_only_the_valid_member_of_a_hostile_archive_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = make_pictures(tmp_path / "one", 1) / "00.png"
    (tmp_path / "a" / "b").mkdir(parents=True)
    archive = tmp_path / "a" / "b" / "pictures.zip"
    archive.write_bytes(hostile.slipping_zip(picture.read_bytes()))
    before = set(tmp_path.rglob("*"))
    assert main(["prepare", str(archive), "--out", str(tmp_path / "out"), "--trigger", "x", "--resolution", "64", "--json"]) == 0
    output = capsys.readouterr().out
    drive = "C:/escaped.png" if os.sep == "\\" else "C:\\\\escaped.png"  # zipfile makes one kind of separators
    for name in ("../escaped.png", "/tmp/escaped.png", drive, "link.png", "bomb.bmp"):
        assert name in output
    new = set(tmp_path.rglob("*")) - before
    assert all(path.is_relative_to(tmp_path / "out") for path in new)
    assert [path.name.split("-")[0] for path in new if path.suffix == ".png"] == ["good"]
    assert not Path("/tmp/escaped.png").exists()


@pytest.mark.skipif(os.name == "nt", reason="NOT CHECKED: devices and pipes are POSIX")
def test_devices_and_pipes_beside_images_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_pictures(tmp_path / "pictures", 1)
    (folder / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "00.txt").symlink_to("/dev/zero")
    os.mkfifo(folder / "metadata.jsonl")
    assert main(["prepare", str(folder), "--out", str(tmp_path / "out"), "--trigger", "x", "--resolution", "64", "--json"]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in ("zero.png", "pipe.png", "loop.png"))
    assert [path.name.split("-")[0] for path in (tmp_path / "out").rglob("*.png")] == ["00"]


# models that the user brings


def model_of_whole_numbers() -> bytes:
    """An ONNX model of the right shape that takes another type of number."""
    onnx = pytest.importorskip("onnx")
    helper, whole = onnx.helper, onnx.TensorProto.INT64
    shape = {"x": [None, 448, 448, 3], "y": [None, 448, 448, 3]}
    ends = [helper.make_tensor_value_info(name, whole, sizes) for name, sizes in shape.items()]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString())


@pytest.mark.parametrize("content", ["empty", "garbage", "pickle", "device", "folder", "whole numbers"])
@pytest.mark.parametrize("kind", ["tagger", "face model"])
def test_hostile_onnx_models_are_reported(kind: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    pictures, model, mark = make_pictures(tmp_path / "pictures", 1, size=(96, 160)), tmp_path / "lying.onnx", tmp_path / "it ran"
    (tmp_path / "selected_tags.csv").write_text("tag_id,name,category,count\n1,a,0,1\n", encoding="utf-8")
    if content == "device":
        if os.name == "nt":
            pytest.skip("NOT CHECKED: devices are POSIX")
        model.symlink_to("/dev/zero")
    elif content == "folder":
        model.mkdir()
    else:
        made = {"empty": b"", "garbage": b"garbage" * 1000, "pickle": pickle.dumps(hostile.Evil(mark))}
        model.write_bytes(made[content] if content in made else model_of_whole_numbers())
    command = ["prepare", str(pictures), "--out", str(tmp_path / "out"), "--trigger", "x", "--resolution", "64"]
    command += ["--tagger", str(model)] if kind == "tagger" else ["--crop", "face", "--set", f"face_model={model}"]
    assert main(command) == 1
    output = capsys.readouterr().err
    assert "error: " in output and "Traceback" not in output
    assert "lying.onnx" in output
    assert not mark.exists()


# configurations


@pytest.mark.parametrize(
    "content", [b"[" * 200_000, b"{" * 200_000, b"\xff\xfe\x00", b"x = 1\n" * 500_000, b"null", b"[1]", b'"text"', b""]
)
@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_settings_of_the_wrong_type_huge_or_deep_are_rejected(
    content: bytes, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, pictures = tmp_path / f"settings{suffix}", make_pictures(tmp_path / "pictures", 1)
    path.write_bytes(content)
    commands = [["train", str(path)], ["train", str(path), "--dry-run"]]
    if content:  # an empty file is a settings file that sets nothing
        commands.append(["prepare", str(pictures), "--out", str(tmp_path / "out"), "--settings", str(path)])
    for command in commands:
        assert main(command) == 1, command
        assert capsys.readouterr().err.startswith("error: ")


DEEP = "[" * 200_000


def test_deeply_nested_lines_in_a_dataset_are_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = make_pictures(tmp_path / "pictures", 2)
    (pictures / "meta.json").write_text(DEEP, encoding="utf-8")
    (pictures / "metadata.jsonl").write_text(DEEP, encoding="utf-8")
    command = ["prepare", str(pictures), "--out", str(tmp_path / "out"), "--trigger", "x", "--resolution", "64", "--json"]
    assert main(command) == 0
    first = json.loads(capsys.readouterr().out)
    made = Path(first["path"])
    for path in (made / "manifest.jsonl", made / ".prepare" / "journal.jsonl"):
        path.write_text(DEEP, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        open_dataset(made)
    assert caught.value.kind == "dataset"
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["hash"] == first["hash"]
    (made / "manifest.json").write_text(DEEP, encoding="utf-8")
    with pytest.raises(UserError, match="damaged"):
        open_dataset(made)


def test_deeply_nested_records_in_a_run_are_ignored(tmp_path: Path, shallow_checkpoint: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "name-0", "name")
    run.path.mkdir(parents=True)
    run.lora.write_bytes(b"x")
    for path in (run.result, run.events, tmp_path / "checkpoint-hashes.json"):
        path.write_text(DEEP, encoding="utf-8")
    assert run.finished() is None
    assert read_events(run.events) == []
    assert open_checkpoint(str(shallow_checkpoint)).identity(tmp_path) == sha256_file(shallow_checkpoint)


def test_paths_with_a_nul_are_rejected(
    shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = f"{tmp_path}/a\x00b"
    settings = tmp_path / "run.json"
    settings.write_text(configuration(shallow_checkpoint, dataset_folder, tmp_path / "runs").to_json(), encoding="utf-8")
    keys = ("output.runs", "output.publish", "dataset.path", "base.checkpoint", "base.lora")
    sample = ["sample", "--prompt", "x", "--out", str(tmp_path / "o")]
    picture = tmp_path / "p.png"
    Image.new("RGB", (64, 64)).save(picture)
    for command in (
        ["train", bad], ["info", bad], ["export", bad, str(tmp_path / "o")], ["prepare", bad, "--trigger", "x"],
        ["prepare", str(picture), "--trigger", "x", "--out", bad], ["prune", bad], [*sample, "--base", bad],
        [*sample, "--base", "nowhere.safetensors", "--image", bad], *(["train", str(settings), "--set", f"{key}={bad}"] for key in keys),
    ):  # fmt: skip
        assert main(command) == 1, command
        output = capsys.readouterr().err
        assert "error: " in output and "Traceback" not in output
