"""Sizes at which the recipe runs in seconds."""

from __future__ import annotations

from demo.recipe.base_model import Widths

TOY = Widths(vae=(32, 32, 32, 32), unet=(32, 32), unet_attention=(True, False), text=64, text_layers=1)
