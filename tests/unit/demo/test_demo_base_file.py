"""The base file goes through the loading code of a user's checkpoint and comes back as the same network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from demo.recipe.base_file import write_base
from demo.recipe.base_model import Widths, build_text_encoder, build_unet, build_vae
from trainer.families import family_of, open_checkpoint

SMALL = Widths(vae=(32, 32, 64, 64), unet=(32, 64), unet_attention=(True, False), text=64, text_layers=2)
BASE = Widths(vae=(32, 64, 64, 64), unet=(32, 64, 64), unet_attention=(False, True, False), text=64, text_layers=1)
DEEPER = replace(BASE, vae_layers=2, unet_attention=(True, True, False), unet_layers=2)


@pytest.mark.parametrize("widths", [SMALL, DEEPER, BASE], ids=["two levels", "three levels", "first level without attention"])
def test_the_family_loader_gives_back_the_same_outputs(tmp_path: Path, widths: Widths) -> None:
    torch.manual_seed(0)
    vae, unet, text = build_vae(widths).eval(), build_unet(widths).eval(), build_text_encoder(widths).eval()
    path = tmp_path / "base.safetensors"
    write_base(path, vae, unet, text, {"modelspec.title": "test"})
    checkpoint = open_checkpoint(str(path))
    family = family_of(checkpoint)
    assert family.name == "sd1"
    latents, picture, ids = torch.randn(1, 4, 16, 16), torch.randn(1, 3, 64, 64), torch.randint(0, 49407, (1, 77))
    context = torch.randn(1, 77, widths.text)
    with torch.no_grad():
        for module in (vae, unet, text):  # what the file holds: weights rounded to fp16
            module.to(torch.float16).to(torch.float32)
        read_denoiser: Any = family.load_denoiser(checkpoint, torch.float32)
        read_vae: Any = family.load_vae(checkpoint, torch.float32)
        read_text: Any = family.load_text_encoder(checkpoint, torch.float32, torch.device("cpu"))
        t = torch.tensor([500])
        torch.testing.assert_close(read_denoiser(latents, t, context).sample, unet(latents, t, context).sample)
        torch.testing.assert_close(read_vae.encode(picture).latent_dist.mean, vae.encode(picture).latent_dist.mean)
        torch.testing.assert_close(read_vae.decode(latents).sample, vae.decode(latents).sample)
        torch.testing.assert_close(read_text.model(ids).last_hidden_state, text(ids).last_hidden_state)


def test_a_diverged_network_is_not_written(tmp_path: Path) -> None:
    vae, unet, text = build_vae(SMALL), build_unet(SMALL), build_text_encoder(SMALL)
    with torch.no_grad():
        unet.conv_in.weight[0, 0, 0, 0] = 1e6  # overflows fp16
    with pytest.raises(ValueError, match="not finite"):
        write_base(tmp_path / "base.safetensors", vae, unet, text, {})
    assert not list(tmp_path.iterdir())
