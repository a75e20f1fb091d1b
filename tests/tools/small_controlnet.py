"""A ControlNet for the embedded demo base: ``python -m tests.tools.small_controlnet OUT.safetensors [STEPS]``.

None exists for so small a model. With 0 steps it has no effect, as every ControlNet before its training; trained on drawn portraits and
their edges for some minutes, it holds a portrait's outlines. Needs diffusers, and for training SciPy and kornia, whose Canny ComfyUI's node
uses.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from demo.drawing.portraits import caption, random_portrait
from demo.drawing.render import render
from trainer.families import BaseCheckpoint, sd1
from trainer.families.stable_diffusion.noise_schedule import SCHEDULE
from trainer.lorafile.naming.unet_names import UNetLayout, diffusers_to_ldm
from trainer.objective.diffusion import Diffusion

BASE = Path(__file__).resolve().parents[2] / "demo" / "base" / "animelora-base.safetensors"
_LAYOUT = UNetLayout(layers=1, attention=(False, True, False))  # the embedded base's
_PEOPLE = 150  # drawn in both styles
_BATCH = 8
_RATE = 1e-3
_EDGES = (0.15, 0.4)  # thresholds of Canny, as in the template


def empty(seed: int = 0) -> Any:
    """A diffusers ControlNetModel for the base's UNet, without effect."""
    from diffusers import ControlNetModel

    torch.manual_seed(seed)
    unet: Any = sd1.FAMILY.load_denoiser(BaseCheckpoint(BASE, "file"), torch.float32)
    widths = tuple(unet.config.block_out_channels)
    control = ControlNetModel(
        in_channels=4,
        down_block_types=unet.config.down_block_types,
        block_out_channels=widths,
        layers_per_block=unet.config.layers_per_block,
        cross_attention_dim=unet.config.cross_attention_dim,
        attention_head_dim=tuple(width // 64 for width in widths),  # ComfyUI's assumption for a ControlNet of unknown size
        norm_num_groups=32,
        conditioning_embedding_out_channels=(16, 32, 96, 256),
    )
    for part in ("conv_in", "time_proj", "time_embedding", "down_blocks", "mid_block"):
        getattr(control, part).load_state_dict(getattr(unet, part).state_dict())
    return control


def original_names(control: Any) -> dict[str, torch.Tensor]:
    """The weights under the original ControlNet's names, in fp16."""
    named = {}
    for key, value in control.state_dict().items():
        module, _, suffix = key.rpartition(".")
        named[f"{_name(module)}.{suffix}"] = value.half().contiguous()
    return named


def _name(module: str) -> str:
    head, _, rest = module.partition(".")
    if head == "controlnet_cond_embedding":
        number = {"conv_in": 0, "conv_out": 14}.get(rest)
        return f"input_hint_block.{2 + 2 * int(rest.split('.')[1]) if number is None else number}"
    if head == "controlnet_down_blocks":
        return f"zero_convs.{rest}.0"
    if head == "controlnet_mid_block":
        return "middle_block_out.0"
    found = diffusers_to_ldm(module, _LAYOUT)
    assert found is not None, module
    return found


def train(control: Any, steps: int) -> None:
    """Train it in place to follow edges, by the UNet's noise prediction on portraits in both styles."""
    latents, hints, prompts = _pictures()
    checkpoint = BaseCheckpoint(BASE, "file")
    unet: Any = sd1.FAMILY.load_denoiser(checkpoint, torch.float32).requires_grad_(False)
    text = sd1.FAMILY.load_text_encoder(checkpoint, torch.float32, torch.device("cpu"))
    described = torch.stack([row["embeds"] for row in text.encode(prompts)])
    plain = text.encode(["portrait"])[0]["embeds"]
    noise = Diffusion(SCHEDULE)
    optimizer = torch.optim.AdamW(control.parameters(), lr=_RATE, weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        index = torch.randint(len(latents), (_BATCH,), generator=generator)
        words = described[index].clone()
        words[torch.rand(_BATCH, generator=generator) < 0.5] = plain  # so that the information has to come from the edges
        clean, hint = latents[index], hints[index]
        eps = torch.randn(clean.shape, generator=generator)
        t = torch.randint(1000, (_BATCH,), generator=generator)
        noisy = noise.add_noise(clean, eps, t)
        down, middle = control(noisy, t, words, hint, return_dict=False)
        out = unet(noisy, t, words, down_block_additional_residuals=down, mid_block_additional_residual=middle).sample
        loss = torch.nn.functional.mse_loss(out, eps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(control.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        rate.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.4f}", flush=True)


def _pictures() -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Latents (n, 4, 32, 32), edges (n, 3, 256, 256) in 0..1 and captions of drawn portraits."""
    import numpy as np

    people = [random_portrait(1000 + number) for number in range(_PEOPLE)]
    drawn = [np.asarray(render(person, style, 256).convert("RGB")) for style in ("anime", "photo") for person in people]
    pixels = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 255
    vae: Any = sd1.FAMILY.load_vae(BaseCheckpoint(BASE, "file"), torch.float32)
    with torch.no_grad():
        latents = torch.cat([vae.encode(part * 2 - 1).latent_dist.mean for part in pixels.split(32)]) * sd1.FAMILY.latents.scaling_factor
        edges = torch.cat([_edges(part) for part in pixels.split(32)]).repeat(1, 3, 1, 1)
    return latents, edges, [caption(person, None) for person in people] * 2


def _edges(pixels: torch.Tensor) -> torch.Tensor:
    """Canny's edges (n, 1, h, w), 0 or 1, of images (n, 3, h, w). SciPy links weak edges to strong ones in one pass, kornia in as many
    as the longest line has pixels."""
    import numpy as np
    from kornia.filters import canny
    from scipy.ndimage import label

    found: Any = canny(pixels, *_EDGES, hysteresis=False)[1].numpy()  # weak 0.5, strong 1
    for (picture,) in found:
        lines, _ = label(picture, structure=np.ones((3, 3)))
        picture[:] = np.isin(lines, lines[picture == 1.0])
    return torch.from_numpy(found)


def main() -> int:
    """The command line."""
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 900
    control = empty()
    if steps:
        train(control, steps)
    save_file(original_names(control), sys.argv[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
