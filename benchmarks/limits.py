"""Upper limits: the arithmetic of a training step, and the rate at which this machine multiplies matrices."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from trainer.adapters.denoiser_adapters import adapt_denoiser
from trainer.config.sections.network import NetworkSection
from trainer.families import Framing, family_of, open_checkpoint

SIDES = {"cpu": 2048, "cuda": 8192}  # of the square matrices
SECONDS = 3.0


def step_flop(checkpoint: Path, *, resolution: int, rank: int) -> float:
    """Floating-point operations of one image's forward and backward pass with gradients for LoRA alone, counted by
    ``torch.utils.flop_counter`` on tensors without contents. A multiplication and its addition are two."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    opened = open_checkpoint(str(checkpoint))
    family = family_of(opened)
    unet: Any = family.empty_denoiser(opened)
    network = NetworkSection(rank=rank, alpha=float(rank))
    with torch.device("meta"):
        adapt_denoiser(unet, family, network, 0)
    meta = torch.device("meta")
    condition = family.empty_condition(unet)
    inputs = family.denoiser_inputs([condition], [Framing((resolution, resolution), (resolution, resolution))], meta, torch.float32)
    counter = FlopCounterMode(display=False)
    with counter:
        latents = torch.empty(1, *family.latents.shape(resolution, resolution), device=meta)
        output = unet.train()(latents, torch.zeros(1, dtype=torch.int64, device=meta), **inputs, return_dict=False)[0]
        (output**2).mean().backward()
    return float(counter.get_total_flops())


def matmul_rate(device: str, precision: str) -> float:
    """FLOP/s of one large matrix product in ``precision``: the best of several seconds."""
    import torch

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    side = SIDES[device]
    first, second = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best, ends = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < ends:
        began = time.perf_counter()
        torch.mm(first, second)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best
