"""The exported file: kohya's names and shapes, true metadata, and the same picture in diffusers as in the trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from random_checkpoints.make_checkpoint import make_empty_checkpoint
from tests.unit.lorafile.helpers import key_table
from tests.unit.training_helpers import Trained, configuration, make_dataset, train_here
from trainer.adapters import adapter
from trainer.config.run_config import RunConfig
from trainer.core.errors import UserError
from trainer.dataset import open_dataset
from trainer.families import BaseCheckpoint, open_checkpoint
from trainer.families.sd1 import FAMILY
from trainer.plan.planning import make_plan
from trainer.runs import events
from trainer.training.saving.lora_exporter import Exporter

pytestmark = pytest.mark.seconds

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> BaseCheckpoint:
    """A file with the header of a whole SD 1.5 and nothing but zeros behind it, which take no room on the disk."""
    return open_checkpoint(str(make_empty_checkpoint(tmp_path_factory.mktemp("sd15") / "v1-5-zeros.safetensors", "full")))


def exporter(config: RunConfig, checkpoint: BaseCheckpoint) -> Exporter:
    dataset = open_dataset(Path(config.dataset.path))
    plan = make_plan(config, dataset, FAMILY, checkpoint, CPU, "fp32")
    return Exporter(config, dataset, FAMILY, checkpoint, "a" * 64, plan, 1_700_000_000.0)


def random_weights(unet: Any, modules: list[str], rank: int) -> dict[str, torch.Tensor]:
    """Weights of the shapes that LoRA has on ``unet``, which is on the meta device."""
    with torch.device("meta"):
        adapter.inject(unet, modules, rank=rank, alpha=rank, seed=0)
    draw = torch.Generator().manual_seed(0)
    weights = {}
    for pair in adapter.pairs(unet):
        weights[f"{pair.module}.down"] = torch.randn(pair.down.shape, generator=draw) * 0.01
        weights[f"{pair.module}.up"] = torch.randn(pair.up.shape, generator=draw) * 0.01
    return weights


def test_keys_types_and_shapes_are_those_of_a_real_kohya_file(sd15: BaseCheckpoint, dataset_folder: Path, tmp_path: Path) -> None:
    rank = 2
    config = configuration(sd15.path, dataset_folder, tmp_path, {"network.rank": rank, "network.alpha": 1.0})
    unet = FAMILY.empty_denoiser(sd15)
    weights = random_weights(unet, FAMILY.denoiser_targets(unet, "all-linear"), rank)
    exporter(config, sd15).write(tmp_path / "l.safetensors", weights, step=9, loss=0.1)
    written = load_file(str(tmp_path / "l.safetensors"))

    def with_our_rank(key: str, shape: list[int]) -> tuple[int, ...]:
        if key.endswith(".lora_down.weight"):
            return (rank, *shape[1:])
        return (shape[0], rank, *shape[2:]) if key.endswith(".lora_up.weight") else tuple(shape)

    kohya = {key: (kind, with_our_rank(key, shape)) for key, (kind, shape) in key_table("sd15").items() if key.startswith("lora_unet_")}
    assert len(kohya) == 3 * 192
    ours = {key: ({torch.float16: "F16"}.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape)) for key, tensor in written.items()}
    assert ours == kohya
    assert {tensor.item() for key, tensor in written.items() if key.endswith(".alpha")} == {1.0}


def test_the_plan_counts_the_parameters_that_kohya_s_file_has(
    sd15: BaseCheckpoint, dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.compute.onednn.onednn_layers.layers_agree", lambda dtype: False)  # as on a processor without bf16
    rank = 16
    plan = make_plan(
        configuration(sd15.path, dataset_folder, tmp_path, {"network.rank": rank}), open_dataset(dataset_folder), FAMILY, sd15, CPU, "bf16"
    )
    expected = 0
    for key, (_, shape) in key_table("sd15").items():
        if key.startswith("lora_unet_"):
            expected += rank * (shape[1] if key.endswith(".lora_down.weight") else shape[0] if key.endswith(".lora_up.weight") else 0)
    assert plan.trainable_parameters == expected
    assert plan.modules == 192
    # 859.5 million frozen parameters of two bytes at least, and far from the double of it at 64 pixels
    assert 1.72 < plan.memory_gb < 3.4


@pytest.fixture(scope="module")
def trained(tiny_checkpoint: Path, dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Three steps at a high rate, so that the LoRA is felt."""
    changes = {"training.max_steps": 3, "optimizer.lr": 0.02, "network.rank": 3, "network.alpha": 6.0}
    result = train_here(configuration(tiny_checkpoint, dataset_folder, tmp_path_factory.mktemp("export"), changes))
    assert result.status == 0
    return result


def predictions(unet: Any, scale: float = 1.0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    latents, context = torch.randn(2, 4, 8, 8, generator=draw), torch.randn(2, 77, 64, generator=draw)
    kwargs = {} if scale == 1 else {"cross_attention_kwargs": {"scale": scale}}
    with torch.no_grad():
        output: torch.Tensor = unet(latents, torch.tensor([11, 700]), context, **kwargs).sample
    return output


def test_diffusers_with_the_file_predicts_what_the_trainer_predicted(trained: Trained, tiny_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint))
    unet: Any = FAMILY.load_denoiser(checkpoint, torch.float32)
    base = predictions(unet)
    adapter.inject(unet, FAMILY.denoiser_targets(unet, "all-linear"), rank=3, alpha=6.0, seed=0)
    adapter.load_state(unet, trained.state(3)["lora"])
    in_training = predictions(unet)
    pipeline = FAMILY.pipeline(checkpoint, dtype=torch.float32)
    pipeline.load_lora_weights(str(trained.run.lora.parent), weight_name=trained.run.lora.name)
    difference = float((predictions(pipeline.unet) - in_training).abs().max())
    effect = float((in_training - base).abs().max())
    assert effect > 0.05
    assert difference < effect / 200  # fp16 keeps eleven bits: the rest is the LoRA


def test_the_file_holds_the_trained_weights_in_fp16(trained: Trained) -> None:
    from trainer.lorafile import kohya_unet_key

    written, state = load_file(str(trained.run.lora)), trained.state(3)["lora"]
    assert len(written) == 3 * len(state) // 2
    for name, value in state.items():
        module, _, side = name.rpartition(".")
        assert torch.equal(written[f"{kohya_unet_key('sd1', module)}.lora_{side}.weight"], value.half())


def test_the_metadata_describes_the_run(trained: Trained, tiny_checkpoint: Path) -> None:
    import hashlib

    with safe_open(str(trained.run.lora), "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_dim"] == "3"
    assert float(metadata["ss_network_alpha"]) == 6.0
    assert metadata["ss_base_model_version"] == "sd_v1"
    assert metadata["ss_steps"] == "3"
    assert float(metadata["ss_learning_rate"]) == 0.02
    assert metadata["ss_sd_model_name"] == tiny_checkpoint.name
    assert metadata["ss_new_sd_model_hash"] == hashlib.sha256(tiny_checkpoint.read_bytes()).hexdigest()
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["modelspec.trigger_phrase"].startswith("myStyle")
    dataset = open_dataset(_dataset_of(trained))
    tags = json.loads(metadata["ss_tag_frequency"])
    assert sum(tags[dataset.name].values()) == sum(len(item.caption.split(",")) for item in dataset.items)


def _dataset_of(trained: Trained) -> Path:
    return Path(json.loads(trained.run.config.read_text(encoding="utf-8"))["dataset"]["path"])


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf"), 1e6])
def test_weights_that_are_of_no_use_are_not_written(bad: float, trained: Trained, tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = configuration(tiny_checkpoint, _dataset_of(trained), tmp_path, {"network.rank": 3})
    weights = {name: torch.full_like(value, bad) for name, value in trained.state(3)["lora"].items()}
    with pytest.raises(UserError):
        exporter(config, open_checkpoint(str(tiny_checkpoint))).write(tmp_path / "bad.safetensors", weights, step=1, loss=1.0)
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.long  # 3.6 million characters to tokenise; which tags are kept: tests/unit/lorafile/writing/test_save.py
def test_captions_of_any_length_leave_room_for_the_file(shallow_checkpoint: Path, tmp_path: Path) -> None:
    """More captions than a header may have: the LoRA is written, and what it lacks was warnings before training."""
    folder = make_dataset(tmp_path, 4)
    for number, caption in enumerate(sorted(folder.glob("*.txt"))):
        caption.write_text(f"ohwx girl, {number}" + "x" * 900_000 + f", smile {number}", encoding="utf-8")
    changes = {"training.max_steps": 1, "optimizer.lr": 0.02}
    trained = train_here(configuration(shallow_checkpoint, folder, tmp_path / "runs", changes))
    assert trained.status == 0
    kinds = [event.name for event in trained.told]
    warnings = [event.message for event in trained.told if isinstance(event, events.Warning_)]
    assert any("2 of the rarest are left out" in message for message in warnings), warnings
    assert kinds.index("warning") < kinds.index("step")
    with safe_open(trained.run.lora, framework="pt") as file:
        metadata = file.metadata()
    (tags,) = json.loads(metadata["ss_tag_frequency"]).values()
    assert tags["ohwx girl"] == 4 and {f"smile {number}" for number in range(4)} <= tags.keys()
    assert metadata["animelora.tags_left_out"] == "2"
    assert sum(map(len, metadata.values())) < 5_000_000
