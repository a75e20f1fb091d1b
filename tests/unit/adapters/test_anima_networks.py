"""What a LoRA for Anima can be: kinds of layers, ranks for its parts by kohya's names, DoRA.

Each exported file is applied to a fresh transformer by code that knows nothing of training, and predicts what the trainer predicted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tools.comfyui import ComfyUI
from tests.unit.adapters.apply_file import applied
from tests.unit.lorafile.other_programs.in_comfyui import comfy_key, load_in_comfyui
from tests.unit.training_helpers import configuration, make_dataset, thrown_back, train_here
from trainer.adapters import adapter
from trainer.adapters.denoiser_adapters import adapt_denoiser
from trainer.core.errors import UserError
from trainer.families import family_named, open_checkpoint
from trainer.lorafile import read_lora

pytest.importorskip("diffusers.models.condition_embedders.condition_embedder_anima", reason="diffusers knows Anima from 0.39 on")

FAMILY = family_named("anima")
QUICK: dict[str, Any] = {"training.max_steps": 3, "optimizer.lr": 0.02, "network.rank": 3, "network.alpha": 6.0, "training.epochs": 3}
BEYOND = {"network.modulation": True, "network.final_layer": True}
NETWORKS: dict[str, dict[str, Any]] = {
    "everything": BEYOND,
    "attention and modulation": {"network.targets": "attention", "network.modulation": True},
    "everything decomposed": {**BEYOND, "network.dora": True},
    "everything rank-stabilised": {**BEYOND, "network.rslora": True},
    "blocks": {
        "network.final_layer": True,
        "network.block_ranks": {"blocks.0": 0, "blocks.*.cross_attn": 2, "blocks.1.cross_attn.k_proj": 5, "final_layer": 1},
        "network.block_alphas": {"blocks.1.mlp": 2.5},
    },
}
MODULES = {"everything": 35, "attention and modulation": 28, "everything decomposed": 35, "everything rank-stabilised": 35, "blocks": 17}


def prediction(denoiser: Any) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    latents, context = torch.randn(2, 16, 8, 8, generator=draw), torch.randn(2, 512, 64, generator=draw)
    with torch.no_grad():
        output: torch.Tensor = denoiser.eval()(latents, torch.tensor([0.1, 0.7]), context)[0]
    return output


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.seconds
def test_the_file_predicts_like_the_trained_model(tiny_anima: Path, tmp_path: Path, name: str) -> None:
    settings = configuration(tiny_anima, make_dataset(tmp_path, 3), tmp_path / "runs", {**QUICK, **NETWORKS[name]})
    trained = train_here(settings)
    assert trained.status == 0, trained.told[-1]
    assert len(read_lora(trained.run.lora).modules) == MODULES[name]
    checkpoint = open_checkpoint(str(tiny_anima))
    ours: Any = FAMILY.load_denoiser(checkpoint, torch.float32)
    before = prediction(ours)
    adapt_denoiser(ours, FAMILY, settings.network, 0)
    adapter.load_state(ours, trained.state(3)["lora"])
    expected = prediction(ours)
    given = prediction(applied(FAMILY.load_denoiser(checkpoint, torch.float32), trained.run.lora))
    assert float((expected - before).abs().max()) > 20 * float((given - expected).abs().max())


@pytest.mark.seconds
def test_parts_have_ranks_and_alphas_by_kohya_s_names(tiny_anima: Path, tmp_path: Path) -> None:
    changes = {**QUICK, **NETWORKS["blocks"], "training.max_steps": 1}
    trained = train_here(configuration(tiny_anima, make_dataset(tmp_path, 1), tmp_path / "runs", changes))
    sizes = {module.name: (module.rank, float(module.alpha or 0)) for module in read_lora(trained.run.lora)}
    # in blocks.0 all but cross_attn is left out: the name with more parts wins
    assert {name for name in sizes if name.startswith("transformer_blocks.0.")} == {
        f"transformer_blocks.0.attn2.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0")
    }
    assert sizes["transformer_blocks.0.attn2.to_k"] == (2, 6.0)
    assert sizes["transformer_blocks.1.attn2.to_k"] == (5, 6.0)
    assert sizes["transformer_blocks.1.attn1.to_k"] == (3, 6.0)
    assert sizes["transformer_blocks.1.ff.net.2"] == (3, 2.5)
    assert sizes["norm_out.linear_1"] == sizes["proj_out"] == (1, 6.0)


@pytest.mark.parametrize(("name", "parts"), [("blocks.7", "blocks.0 to blocks.1, final_layer"), ("mid_block", "blocks.0 to blocks.1")])
def test_a_part_that_the_model_lacks_is_refused(tiny_anima: Path, tmp_path: Path, name: str, parts: str) -> None:
    changes = {"network.block_alphas": {name: 4}}
    trained = train_here(configuration(tiny_anima, make_dataset(tmp_path, 1), tmp_path / "runs", changes))
    assert f"network.block_alphas names {name}, which this model does not have" in getattr(trained.told[-1], "message", "")
    assert parts in getattr(trained.told[-1], "hint", "")


@pytest.mark.parametrize("setting", BEYOND)
def test_unets_have_no_layers_of_transformers(shallow_checkpoint: Path, setting: str) -> None:
    checkpoint = open_checkpoint(str(shallow_checkpoint))
    family = family_named("sd1")
    with pytest.raises(UserError, match=f"{setting} = true is for transformers, but Stable Diffusion 1.x has a UNet"):
        family.denoiser_targets(family.empty_denoiser(checkpoint), "all-linear", [setting.removeprefix("network.")])


@pytest.mark.seconds
def test_a_resumed_run_ends_with_the_same_bits(tiny_anima: Path, tmp_path: Path) -> None:
    changes = {**QUICK, **NETWORKS["everything decomposed"], "training.checkpoint_every": 1}
    whole = train_here(configuration(tiny_anima, make_dataset(tmp_path, 3), tmp_path / "runs", changes))
    again = train_here(thrown_back(whole, tmp_path / "cut", 1))
    assert [event.step for event in again.steps][-2:] == [2, 3]
    assert again.run.lora.read_bytes() == whole.run.lora.read_bytes()


@pytest.mark.seconds
def test_training_continues_from_the_file(tiny_anima: Path, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, 1)
    first = train_here(configuration(tiny_anima, dataset, tmp_path / "runs", {**QUICK, **NETWORKS["everything decomposed"]}))
    still = {"optimizer.lr": 1e-9, "optimizer.weight_decay": 0.0, "network.alpha": 3.0, "base.lora": str(first.run.lora)}
    again = train_here(configuration(tiny_anima, dataset, tmp_path / "runs", {**QUICK, **NETWORKS["everything decomposed"], **still}))
    assert again.status == 0, again.told[-1]
    for before, after in zip(read_lora(first.run.lora), read_lora(again.run.lora), strict=True):
        assert before.name == after.name
        assert float((before.delta() - after.delta()).norm()) <= 3e-3 * float(before.delta().norm()) + 1e-6


@pytest.mark.comfyui
def test_comfyui_uses_every_key(tiny_anima: Path, tmp_path: Path, comfyui: ComfyUI) -> None:
    if not (comfyui.path / "comfy" / "ldm" / "anima").is_dir():
        pytest.skip("this ComfyUI does not know Anima")
    changes = {**QUICK, **NETWORKS["everything decomposed"], "training.max_steps": 1}
    trained = train_here(configuration(tiny_anima, make_dataset(tmp_path, 1), tmp_path / "runs", changes))
    job = {"lora": str(trained.run.lora), "result": str(tmp_path / "out.safetensors"), "layers": []}
    (result,) = load_in_comfyui(comfyui, tmp_path, "anima", [job])
    assert result["left"] == []
    assert set(result["patched"]) == {comfy_key("anima", module.component, module.name) for module in read_lora(trained.run.lora)}
