"""Starting weights that let colour through from the first step.

Every residual branch starts at zero, as in the original latent diffusion code, and the convolutions that
change the resolution start as plain averaging and copying. The network is then nearly linear at first, and
an autoencoder reconstructs coarse colour after a few dozen steps instead of several hundred.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn


def _zero(layer: nn.Module) -> None:
    for p in layer.parameters():
        nn.init.zeros_(p)


@torch.no_grad()
def _pass_through(conv: nn.Conv2d, average: bool) -> None:
    """Identity on the channels; with ``average`` the mean of the 2x2 pixels that a stride of 2 covers."""
    conv.weight.mul_(0.3)
    conv.bias.zero_()  # type: ignore[union-attr]
    n = min(conv.weight.shape[:2])
    eye = torch.eye(n)
    if average:
        # diffusers pads below and on the right before the strided convolution: taps 0 and 1 are the pixels.
        conv.weight[:n, :n, :2, :2] += eye[:, :, None, None] / 4
    else:
        conv.weight[:n, :n, 1, 1] += eye


def start_vae(vae: AutoencoderKL) -> None:
    """Set an untrained autoencoder's weights as described above, in place."""
    for part in (vae.encoder, vae.decoder):
        for name, module in part.named_modules():
            if name.endswith("conv2") or name.endswith("to_out.0"):
                _zero(module)
            elif name.endswith("conv_shortcut") and isinstance(module, nn.Conv2d):
                module.weight.data.mul_(0.3)
                n = min(module.weight.shape[:2])
                module.weight.data[:n, :n, 0, 0] += torch.eye(n)
            elif name.endswith("downsamplers.0.conv") and isinstance(module, nn.Conv2d):
                _pass_through(module, average=True)
            elif name.endswith("upsamplers.0.conv") and isinstance(module, nn.Conv2d):
                _pass_through(module, average=False)


def _unchanged(hidden: torch.Tensor, temb: torch.Tensor | None = None) -> torch.Tensor:
    return hidden


def full_resolution_blocks(vae: AutoencoderKL, active: bool) -> None:
    """Switch the residual blocks at full resolution on or off while training.

    They are two thirds of the autoencoder's arithmetic. Untrained they add exactly zero, so they are left out
    at first and join later without a jump in the loss.
    """
    for block in (*vae.encoder.down_blocks[0].resnets, *vae.decoder.up_blocks[-1].resnets[1:]):
        if active:
            block.__dict__.pop("forward", None)
        else:
            block.forward = _unchanged


def start_unet(unet: UNet2DConditionModel) -> None:
    """Zero the residual branches and the output of an untrained UNet, in place."""
    for name, module in unet.named_modules():
        if name.endswith(("conv2", "proj_out", "conv_out")):
            _zero(module)
