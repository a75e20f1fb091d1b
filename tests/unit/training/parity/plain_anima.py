"""Anima's training step written with diffusers' transformer and peft's adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.transformers import transformer_cosmos
from torch.nn import functional as F

from tests.unit.training.parity.plain_recipe import Gradients, add_peft_adapter
from trainer.config.run_config import RunConfig
from trainer.families import open_checkpoint
from trainer.families.anima.anima_family import FAMILY
from trainer.training.micro_batch import MicroBatch


def replace_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put something in place of torchvision, with which diffusers resizes the padding mask."""
    resize = SimpleNamespace(resize=lambda mask, size, interpolation: F.interpolate(mask, size=size))
    stand_in = SimpleNamespace(functional=resize, InterpolationMode=SimpleNamespace(NEAREST=None))
    monkeypatch.setattr(transformer_cosmos, "transforms", stand_in, raising=False)


def plain_denoiser(config: RunConfig) -> Any:
    """The transformer with peft's adapter on kohya's modules, written down by name, or on all of its last layer and in blocks; and the
    trainer's first down matrices."""
    checkpoint = open_checkpoint(config.base.checkpoint)
    denoiser, first = (FAMILY.load_denoiser(checkpoint, torch.float32) for _ in range(2))
    attention = [f"{name}.{part}" for name in ("attn1", "attn2") for part in ("to_q", "to_k", "to_v", "to_out.0")]
    wanted = {f"transformer_blocks.{block}.{part}" for block in range(2) for part in [*attention, "ff.net.0.proj", "ff.net.2"]}
    if config.network.modulation:
        outside = ("patch_embed", "time_embed")
        wanted = {name for name, part in denoiser.named_modules() if isinstance(part, torch.nn.Linear) and not name.startswith(outside)}
    modules = [name for name, _ in denoiser.named_modules() if name in wanted]
    assert len(modules) == (35 if config.network.modulation else 20)
    add_peft_adapter(denoiser, first, modules, config)
    return denoiser.train()


def plain_loss(denoiser: Any, batch: MicroBatch, context: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the velocity, as kohya's trainer and diffusion-pipe compute it; ``context`` (batch, 512, width)."""
    level = batch.timesteps.view(-1, 1, 1, 1)
    noisy = (1 - level) * batch.latents + level * batch.noise
    mask = torch.zeros(1, 1, 8 * noisy.shape[2], 8 * noisy.shape[3])
    predicted = transformer_cosmos.CosmosTransformer3DModel.forward(
        denoiser, noisy.unsqueeze(2), batch.timesteps, context, padding_mask=mask, return_dict=False
    )[0]
    return F.mse_loss(predicted.squeeze(2), batch.noise - batch.latents)


def plain_steps(
    denoiser: Any,
    trained: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Sequence[MicroBatch]],
    context: Callable[[MicroBatch], torch.Tensor],
) -> tuple[list[float], Gradients, dict[str, torch.Tensor]]:
    """Losses, gradients and last weights of ``trained``, one batch a step; ``context`` encodes the captions of a batch."""
    losses, gradients = [], []
    for (batch,) in batches:
        loss = plain_loss(denoiser, batch, context(batch))
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append({name: parameter.grad.clone() for name, parameter in trained.items() if parameter.grad is not None})
        optimizer.step()
        optimizer.zero_grad()
    return losses, gradients, {name: parameter.detach().clone() for name, parameter in trained.items()}
