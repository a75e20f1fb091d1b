"""Anima LoRAs with another rank, merged, and moved to a model with more blocks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainer.core.errors import UserError
from trainer.lorafile import convert, merge, mismatch, read_lora, reduce_rank, write_lora
from trainer.lorafile.changing.blocks import move_to_depth

pytest.importorskip("diffusers.models.condition_embedders.condition_embedder_anima", reason="diffusers knows Anima from 0.39 on")

from ..anima_samples import small_sample


def test_rank_is_reduced_and_kohyas_network_module_stays(tmp_path: Path) -> None:
    weights = small_sample("lokr")
    weights = type(weights)(
        weights.modules, "anima", "kohya", {**weights.metadata, "ss_network_dim": "4", "ss_network_module": "lycoris.kohya"}
    )
    reduced, report = reduce_rank(weights, 8)
    assert report.changed == len(weights.modules)
    assert reduced.metadata["ss_network_module"] == "networks.lora_anima"
    assert all(module.algorithm == "lora" for module in reduced)


def test_loras_of_two_formats_are_merged(tmp_path: Path) -> None:
    first, second = small_sample(), small_sample(rank=3, alpha=3.0)
    write_lora(tmp_path / "b.safetensors", convert(second, "comfyui"))
    merged, _ = merge([(first, 0.5), (read_lora(tmp_path / "b.safetensors"), 1.0)])
    for one, two, both in zip(first, second, merged, strict=True):
        assert torch.allclose(both.delta(), one.delta() * 0.5 + two.delta(), atol=1e-4)


def test_families_with_text_of_the_same_width_are_told_apart() -> None:
    assert mismatch("anima", "sd2", 1024, 1024) == (
        "This LoRA was made for Anima and the model is Stable Diffusion 2.x: they have different layers."
    )
    assert mismatch("anima", "anima", 1024, 1024) == ""


def test_moving_to_forty_blocks_skips_the_inserted_ones(tmp_path: Path) -> None:
    weights = small_sample(blocks=28)
    moved = move_to_depth(weights, 40)
    positions = {int(m.name.split(".")[1]) for m in moved if m.name.startswith("transformer_blocks.")}
    assert positions == set(range(40)) - {2, 5, 8, 11, 14, 17, 21, 24, 27, 30, 33, 36}
    by_name = {(m.component, m.name): m for m in moved}
    for old, new in ((0, 0), (2, 3), (14, 20), (27, 39)):  # examples that other converters publish
        before = next(m for m in weights if m.name == f"transformer_blocks.{old}.attn1.to_q")
        assert by_name["unet", f"transformer_blocks.{new}.attn1.to_q"].tensors is before.tensors
    assert ("adapter", "blocks.0.self_attn.o_proj") in by_name
    write_lora(tmp_path / "a.safetensors", convert(moved, "kohya"))
    assert "lora_unet_blocks_39_mlp_layer2.alpha" in load_file(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="made for a model with 40 blocks"):
        move_to_depth(read_lora(tmp_path / "a.safetensors"), 40)
    with pytest.raises(UserError, match="not known"):
        move_to_depth(weights, 52)
