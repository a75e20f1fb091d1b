"""What a LoRA can be: convolutions, other ranks for parts of the UNet, dropout, rank-stabilised, weight-decomposed.

Each exported file is applied to a fresh UNet by code that knows nothing of training, and predicts what the trainer predicted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.tools.parameters import mark_long
from tests.unit.adapters.apply_file import applied
from tests.unit.training_helpers import configuration, thrown_back, train_here
from trainer.adapters import adapter
from trainer.config.sections.network import NetworkSection
from trainer.core.errors import UserError
from trainer.families import family_of, open_checkpoint
from trainer.lorafile import convert, read_lora, write_lora
from trainer.runs import events

QUICK: dict[str, Any] = {"training.max_steps": 3, "optimizer.lr": 0.02, "network.rank": 3, "network.alpha": 6.0}
NETWORKS: dict[str, dict[str, Any]] = {
    "convolutions": {"network.targets": "all-linear+conv", "network.conv_rank": 2, "network.conv_alpha": 1.0},
    "blocks": {
        "network.block_ranks": {"down_blocks.0": 0, "up_blocks.1": 5, "up_blocks.1.attentions.2": 2},
        "network.block_alphas": {"up_blocks.1": 2.5},
    },
    "rank-stabilised": {"network.rslora": True},
    "decomposed": {"network.dora": True},
    "decomposed convolutions": {"network.dora": True, "network.targets": "all-linear+conv"},
    "dropout": {"network.dropout": 0.3},
}


def prediction(unet: Any, extra: dict[str, Any]) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    width = int(unet.config.cross_attention_dim)
    latents, context = torch.randn(2, 4, 8, 8, generator=draw), torch.randn(2, 77, width, generator=draw)
    with torch.no_grad():
        output: torch.Tensor = unet.eval()(latents, torch.tensor([11, 700]), context, **extra).sample
    return output


@pytest.mark.parametrize("name", mark_long(NETWORKS, "decomposed"))
@pytest.mark.seconds
def test_the_file_predicts_like_the_trained_model(shallow_checkpoint: Path, dataset_folder: Path, runs: Path, name: str) -> None:
    settings = configuration(shallow_checkpoint, dataset_folder, runs, {**QUICK, **NETWORKS[name]})
    trained = train_here(settings)
    assert trained.status == 0
    checkpoint = open_checkpoint(str(shallow_checkpoint))
    family = family_of(checkpoint)
    ours: Any = family.load_denoiser(checkpoint, torch.float32)
    before = prediction(ours, {})
    adapter.adapt(ours, family.denoiser_targets(ours, settings.network.targets), settings.network, 0)
    adapter.load_state(ours, trained.state(3)["lora"])
    expected = prediction(ours, {})
    given = prediction(applied(family.load_denoiser(checkpoint, torch.float32), trained.run.lora), {})
    assert float((expected - before).abs().max()) > 20 * float((given - expected).abs().max())


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.seconds
def test_convolutions_have_kohya_s_names_and_their_own_rank(
    shallow_sdxl: Path, tiny_checkpoint: Path, dataset_folder: Path, runs: Path, family: str
) -> None:
    checkpoint = {"sd1": tiny_checkpoint, "sdxl": shallow_sdxl}[family]
    changes = {**QUICK, **NETWORKS["convolutions"], "training.max_steps": 1}
    trained = train_here(configuration(checkpoint, dataset_folder, runs, changes))
    tensors = load_file(str(trained.run.lora))
    first = {"sd1": "lora_unet_down_blocks_0_resnets_0_conv1", "sdxl": "lora_unet_input_blocks_1_0_in_layers_2"}[family]
    assert tensors[f"{first}.lora_down.weight"].shape == (2, 32, 3, 3)
    assert tensors[f"{first}.lora_up.weight"].shape == (32, 2, 1, 1)
    assert float(tensors[f"{first}.alpha"]) == 1.0
    shortcut = {"sd1": "lora_unet_up_blocks_0_resnets_0_conv_shortcut", "sdxl": "lora_unet_output_blocks_0_0_skip_connection"}[family]
    assert tensors[f"{shortcut}.lora_down.weight"].shape[0] == 3  # a 1x1 convolution is a linear layer
    sampler = {"sd1": "lora_unet_down_blocks_0_downsamplers_0_conv", "sdxl": "lora_unet_input_blocks_3_0_op"}[family]
    assert f"{sampler}.lora_down.weight" in tensors


@pytest.mark.seconds
def test_blocks_have_their_own_ranks_and_none_at_rank_zero(tiny_checkpoint: Path, dataset_folder: Path, runs: Path) -> None:
    trained = train_here(configuration(tiny_checkpoint, dataset_folder, runs, {**QUICK, **NETWORKS["blocks"], "training.max_steps": 1}))
    sizes: dict[str, set[tuple[int, float]]] = {}
    for module in read_lora(trained.run.lora):
        part = module.name.split(".transformer_blocks")[0].rsplit(".proj", 1)[0]
        assert module.rank is not None and module.alpha is not None
        sizes.setdefault(part, set()).add((module.rank, float(module.alpha)))
    assert not any(part.startswith("down_blocks.0") for part in sizes)
    assert sizes["down_blocks.1.attentions.0"] == {(3, 6.0)}
    assert sizes["up_blocks.1.attentions.0"] == {(5, 2.5)}
    assert sizes["up_blocks.1.attentions.2"] == {(2, 2.5)}
    plan = next(event for event in trained.told if isinstance(event, events.Plan))
    assert plan.modules == len(read_lora(trained.run.lora).modules)


def test_an_unknown_block_and_an_empty_lora_are_refused(shallow_checkpoint: Path, dataset_folder: Path, runs: Path) -> None:
    with pytest.raises(UserError, match="block_ranks"):
        configuration(shallow_checkpoint, dataset_folder, runs, {"network.block_ranks": {"up blocks": 4}})
    trained = train_here(configuration(shallow_checkpoint, dataset_folder, runs, {"network.block_ranks": {"up_block": 4}}))
    assert trained.status == 1
    assert "block_ranks names up_block, which this model does not have" in getattr(trained.told[-1], "message", "")
    assert "down_blocks.0 to down_blocks.1, up_blocks.0 to up_blocks.1, mid_block" in getattr(trained.told[-1], "hint", "")
    with pytest.raises(UserError, match=r"all-linear\+conv"):
        configuration(shallow_checkpoint, dataset_folder, runs, {"network.conv_rank": 4})
    nothing = {"mid_block": 0} | {f"{side}_blocks.{level}": 0 for side in ("down", "up") for level in range(2)}
    trained = train_here(configuration(shallow_checkpoint, dataset_folder, runs, {"network.block_ranks": nothing}))
    assert trained.status == 1
    assert "nothing to train" in getattr(trained.told[-1], "message", "")


CONTINUED: dict[str, dict[str, Any]] = {
    "dropout": NETWORKS["dropout"],
    "decomposed": NETWORKS["decomposed"],
    "prodigy": {"optimizer.name": "prodigy", "optimizer.lr": 1.0},
    "schedule-free": {"optimizer.name": "schedule-free"},
    "adafactor": {"optimizer.name": "adafactor"},
    "lion": {"optimizer.name": "lion", "optimizer.lr": 1e-3},
    "adamw8bit": {"optimizer.name": "adamw8bit", "network.rank": 64, "network.alpha": 64.0},  # smaller tensors are kept in fp32
    "lora+": {"optimizer.lora_plus_ratio": 16.0, "optimizer.lr": 1e-3, "optimizer.schedule": "cosine"},
}


@pytest.mark.parametrize("name", mark_long(CONTINUED, "prodigy", "adafactor", "lion"))
@pytest.mark.seconds
def test_a_resumed_run_ends_with_the_same_bits(
    shallow_checkpoint: Path, dataset_folder: Path, runs: Path, tmp_path: Path, name: str
) -> None:
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    changes = {**QUICK, **CONTINUED[name], "training.max_steps": 4, "training.checkpoint_every": 2}
    whole = train_here(configuration(shallow_checkpoint, dataset_folder, runs, {**changes, "training.epochs": 2}))
    again = train_here(thrown_back(whole, tmp_path / "cut", 2))
    assert again.status == 0
    assert [event.step for event in again.steps][-2:] == [3, 4]
    assert again.run.lora.read_bytes() == whole.run.lora.read_bytes()


@pytest.mark.seconds
def test_dropout_changes_the_training_and_not_the_first_weights(shallow_checkpoint: Path, dataset_folder: Path, runs: Path) -> None:
    without, dropping = (
        train_here(configuration(shallow_checkpoint, dataset_folder, runs, {**QUICK, "network.dropout": value})) for value in (0.0, 0.5)
    )
    assert without.steps[0].loss == pytest.approx(dropping.steps[0].loss, rel=1e-6)  # up is zero: nothing to drop yet
    assert without.steps[2].loss != pytest.approx(dropping.steps[2].loss, rel=1e-4)


def test_size_of_takes_the_longest_name() -> None:
    network = NetworkSection(
        rank=8, alpha=4, targets="all-linear+conv", conv_rank=2, conv_alpha=1, block_ranks={"mid_block": 5, "down_blocks.1": 6}
    )
    assert network.size_of("mid_block.attentions.0.proj_in", ()) == (5, 4.0)
    assert network.size_of("down_blocks.10.resnets.0.conv1", (3, 3)) == (2, 1.0)
    assert network.size_of("down_blocks.1.resnets.0.conv1", (3, 3)) == (6, 1.0)
    assert network.size_of("up_blocks.2.attentions.1.proj_in", ()) == (8, 4.0)


def test_size_of_takes_a_star_as_any_block() -> None:
    network = NetworkSection(
        rank=8, alpha=4, block_ranks={"blocks.*.mlp": 2, "blocks.3": 5, "blocks.3.mlp": 6, "blocks.*": 1}, block_alphas={"blocks.*.mlp": 16}
    )
    assert network.size_of("blocks.3.mlp.layer1", ()) == (6, 16.0)
    assert network.size_of("blocks.12.mlp.layer1", ()) == (2, 16.0)
    assert network.size_of("blocks.3.self_attn.q_proj", ()) == (5, 4.0)
    assert network.size_of("blocks.30.self_attn.q_proj", ()) == (1, 4.0)
    assert network.size_of("blocks.3.adaln_modulation_mlp.1", ()) == (5, 4.0)
    assert network.size_of("final_layer.linear", ()) == (8, 4.0)


@pytest.mark.seconds
def test_training_continues_from_a_lora_file_of_any_format(
    shallow_checkpoint: Path, dataset_folder: Path, runs: Path, tmp_path: Path
) -> None:
    first = train_here(configuration(shallow_checkpoint, dataset_folder, runs, QUICK))
    other = tmp_path / "by another tool.safetensors"
    write_lora(other, convert(read_lora(first.run.lora), "peft"))
    # scale 2 in the first run, 1 in the second: what the file does must stay, not its numbers
    changes = {**QUICK, "network.alpha": 3.0, "training.max_steps": 1, "optimizer.lr": 1e-9, "optimizer.weight_decay": 0.0}
    for source in (first.run.lora, other):
        again = train_here(configuration(shallow_checkpoint, dataset_folder, runs, {**changes, "base.lora": str(source)}))
        assert again.status == 0
        for before, after in zip(read_lora(first.run.lora), read_lora(again.run.lora), strict=True):
            assert before.name == after.name
            assert float((before.delta() - after.delta()).norm()) <= 3e-3 * float(before.delta().norm()) + 1e-6
    fresh = train_here(configuration(shallow_checkpoint, dataset_folder, runs, changes))
    assert fresh.run.path != again.run.path


@pytest.mark.seconds
def test_a_lora_that_does_not_fit_is_refused_before_training(
    shallow_checkpoint: Path, shallow_sdxl: Path, dataset_folder: Path, runs: Path, tmp_path: Path
) -> None:
    first = train_here(configuration(shallow_checkpoint, dataset_folder, runs, {**QUICK, "training.max_steps": 1}))
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (shallow_checkpoint, {"network.rank": 8}, "rank"),
        (shallow_checkpoint, {"network.targets": "attention"}, "proj_in"),
        (shallow_sdxl, {}, "does not fit"),
    ]
    for checkpoint, changes, word in cases:
        settings = configuration(checkpoint, dataset_folder, runs, {**QUICK, **changes, "base.lora": str(first.run.lora)})
        trained = train_here(settings)
        assert trained.status == 1
        assert word in getattr(trained.told[-1], "message", ""), trained.told[-1]
    with pytest.raises(UserError, match="not found"):
        train_here(configuration(shallow_checkpoint, dataset_folder, runs, {"base.lora": str(tmp_path / "none.safetensors")}))
