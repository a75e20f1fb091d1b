"""LoRAs for Lumina 2 are merged into its checkpoints, with all parts or the transformer alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from random_checkpoints.lumina2 import DENOISER, SIZES, layout
from trainer.core.errors import UserError
from trainer.lorafile import LoraWeights, merge_into_checkpoint

from ..lumina2_samples import sample


def small_lora() -> LoraWeights:
    """A LoRA on one block of each kind of the tiny model."""
    shapes = {key.removeprefix(DENOISER): shape for key, shape in layout(SIZES["tiny"]).items() if key.startswith(DENOISER)}
    names = ("layers.1.attention.qkv", "context_refiner.0.feed_forward.w2", "noise_refiner.1.adaLN_modulation.1", "final_layer.linear")
    return sample({name: (shapes[f"{name}.weight"][0], shapes[f"{name}.weight"][1]) for name in names})


@pytest.mark.parametrize("prefix", [DENOISER, ""])
def test_the_changes_are_added_and_everything_else_stays(tiny_lumina2: Path, tmp_path: Path, prefix: str) -> None:
    base = load_file(tiny_lumina2)
    if not prefix:
        base = {key.removeprefix(DENOISER): value for key, value in base.items() if key.startswith(DENOISER)}
    save_file(base, tmp_path / "base.safetensors")
    weights = small_lora()
    assert merge_into_checkpoint(tmp_path / "base.safetensors", [(weights, 0.5)], tmp_path / "merged.safetensors") == len(weights.modules)
    merged = load_file(tmp_path / "merged.safetensors")
    changed = {f"{prefix}{module.name}.weight": module for module in weights}
    assert merged.keys() == base.keys()
    for key, tensor in merged.items():
        expected = base[key]
        if key in changed:
            expected = (base[key].float() + 0.5 * changed[key].delta()).to(base[key].dtype)
        assert torch.equal(tensor, expected), key


def test_a_lora_of_another_family_is_refused(tiny_lumina2: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="made for Lumina 2"):
        merge_into_checkpoint(tiny_checkpoint, [(small_lora(), 1.0)], tmp_path / "merged.safetensors")
    other = LoraWeights(small_lora().modules, "sd1", "kohya", {})
    with pytest.raises(UserError, match=r"made for Stable Diffusion 1\.x"):
        merge_into_checkpoint(tiny_lumina2, [(other, 1.0)], tmp_path / "merged.safetensors")
