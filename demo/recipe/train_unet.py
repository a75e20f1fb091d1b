"""Stage 2 of the recipe: trains text encoder and UNet together from scratch, on stored latents.

Noise prediction with SD 1.x's schedule, a tenth of the captions dropped for classifier-free guidance, and an
exponential average of the weights. What a picture shows is decided at high noise, where an error in the
predicted noise is small even if everything is wrong; the weights and the choice of timesteps make up for that.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from trainer.compute.acceleration import Inputs
from trainer.compute.cuda_graphs.recorded_passes import RecordedPasses

from .base_model import LATENT_SCALE, Widths, build_text_encoder, build_unet
from .data_parallel import agree, average_gradients, rank, world
from .initialise import start_unet
from .optimiser import optimisers
from .training_stage import Average, Budget, Log, learning_rate_factor, load_stage, restore_optimisers, save_stage, set_rates
from .vocabulary import UsedTokens

logger = logging.getLogger(__name__)

ASKED_EVERY = 8
"""Steps between checks for new images."""
LOGGED_EVERY = 50
"""Steps between lines of the log."""


@dataclass(frozen=True)
class UnetSettings:
    """Rates are those of AdamW; Muon's updates are scaled to match (see ``optimiser.py``)."""

    minutes: float = 90.0
    max_steps: int = 60_000
    batch: int = 16
    lr: float = 2e-3
    adam_lr: float = 2e-3
    caption_dropout: float = 0.1
    snr_gamma: float = 5.0
    largest_weight: float = 8.0
    timestep_power: float = 0.75
    """Timesteps are ``1000 * u ** power`` for uniform ``u``: a power below 1 gives more of high noise."""
    ema: float = 0.998
    save_minutes: float = 5.0
    seed: int = 0


@dataclass(frozen=True)
class LatentSet:
    """The data of stage 2: latent means (n, 4, h, w) before the factor 0.18215, caption ids (n, variants, 77)."""

    latents: Tensor
    captions: Tensor
    empty: Tensor
    """Ids (77,) of the empty caption."""


class Growing:
    """A growing tensor that is not copied at each addition."""

    def __init__(self, rows: Tensor) -> None:
        self._room, self._count = rows, len(rows)

    @property
    def rows(self) -> Tensor:
        """All of them, (n, ...)."""
        return self._room[: self._count]

    def append(self, rows: Tensor) -> None:
        """Add ``rows`` (k, ...), from any device."""
        needed = self._count + len(rows)
        if needed > len(self._room):
            room = self._room.new_empty(max(needed, 2 * len(self._room)), *self._room.shape[1:])
            room[: self._count] = self.rows
            self._room = room
        self._room[self._count : needed] = rows.to(self._room)
        self._count = needed


def noise_schedule() -> DDPMScheduler:
    """SD 1.x's schedule."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        clip_sample=False,
    )


def loss_weight(alphas_cumprod: Tensor, gamma: float, largest: float) -> Tensor:
    """Weight of every timestep for noise prediction: ``min(snr + 1, gamma) / snr``, at most ``largest``; (1000,).

    It is the loss of v-prediction (Salimans and Ho, 2022) in terms of the noise, truncated at low noise as in
    min-SNR (Hang et al., 2023) and at high noise, where it would grow to 213.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return ((snr + 1).clamp(max=gamma) / snr).clamp(max=largest)


def stratified_timesteps(count: int, total: int, generator: torch.Generator, power: float = 1.0) -> Tensor:
    """One timestep from each of ``count`` slices of 0..total-1, in random order; the slices are equal in ``(t / total) ** (1 / power)``."""
    device = generator.device
    u = (torch.arange(count, device=device) + torch.rand(count, generator=generator, device=device)) / count
    return (u**power * total).long().clamp(max=total - 1)[torch.randperm(count, generator=generator, device=device)]


def train_unet(
    data: LatentSet,
    work: Path,
    widths: Widths,
    settings: UnetSettings,
    device: torch.device,
    on_save: Callable[[UNet2DConditionModel, CLIPTextModel, int], None] | None = None,
    start: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] | None = None,
    more: Callable[[], LatentSet | None] | None = None,
    words: Tensor | None = None,
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Train UNet and text encoder, or resume their training; returns them with their averaged weights.

    ``start`` are weights of both to begin with in place of untrained ones; ``more`` is asked now and then for what to train
    on besides ``data``; ``words`` are ids of every token that its captions may have.
    """
    torch.manual_seed(settings.seed)
    unet, text = build_unet(widths), build_text_encoder(widths).to(device)
    start_unet(unet)
    if start is not None:
        unet.load_state_dict(start[0])
        text.load_state_dict(start[1])
    unet.to(device)
    budget = Budget(settings.minutes, settings.max_steps)
    path = work / "unet.pt"
    state = load_stage(path)
    if state is not None:
        unet.load_state_dict(state["unet"])
        text.load_state_dict(state["text"])
    tokens = UsedTokens(text, torch.cat([data.captions.flatten(), data.empty, *([] if words is None else [words.flatten()])]))
    opts = optimisers([unet, text], settings.lr, settings.adam_lr)
    averages = (Average(unet, settings.ema), Average(text, settings.ema))
    if state is not None:
        averages[0].weights = {k: v.to(device) for k, v in state["unet_average"].items()}
        averages[1].weights = {k: v.to(device) for k, v in state["text_average"].items()}
        restore_optimisers(opts, state["optimisers"])
        budget = Budget(settings.minutes, settings.max_steps, state["seconds"], state["step"])
    alphas = noise_schedule().alphas_cumprod.to(device)
    weights = loss_weight(alphas, settings.snr_gamma, settings.largest_weight)
    log, last_save = Log(work / "unet.jsonl"), time.monotonic()
    parameters = [*unet.parameters(), *text.parameters()]
    # all data is on the training device, with captions as rows of the small embedding, so that a step copies nothing
    data = LatentSet(data.latents.to(device), tokens.short(data.captions).to(device), tokens.short(data.empty).to(device))
    latents_seen, captions_seen = Growing(data.latents), Growing(data.captions)
    mse = torch.zeros((), device=device)

    def compute(inputs: Inputs) -> tuple[Tensor, Tensor]:
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            prediction = unet(inputs["noisy"], inputs["t"], text(inputs["ids"]).last_hidden_state).sample
        error = (prediction.float() - inputs["eps"]).pow(2).mean(dim=(1, 2, 3))
        mse.copy_(error.detach().mean())
        loss = (weights[inputs["t"]] * error).mean()
        return loss, loss

    def failed(reason: str) -> None:
        logger.warning("without CUDA graphs: %s", reason)

    passes = RecordedPasses(compute, parameters, failed) if device.type == "cuda" else None
    while (share := agree(budget.share)) < 1.0:
        set_rates(opts, learning_rate_factor(share))
        if more is not None and budget.step % ASKED_EVERY == 0 and (part := more()) is not None:
            latents_seen.append(part.latents)
            captions_seen.append(tokens.short(part.captions))
            data = LatentSet(latents_seen.rows, captions_seen.rows, data.empty)
        generator = torch.Generator(device).manual_seed((settings.seed * 1_000_003 + budget.step) * 16 + rank())
        latents, ids = _batch(data, max(1, settings.batch // world()), settings.caption_dropout, generator)
        t = stratified_timesteps(len(latents), 1000, generator, settings.timestep_power)
        eps = torch.randn(latents.shape, generator=generator, device=device)
        a = alphas[t][:, None, None, None]
        inputs = {"noisy": a.sqrt() * latents + (1 - a).sqrt() * eps, "t": t, "eps": eps, "ids": ids}
        if passes is not None:
            loss = passes.run(inputs)
        else:
            loss, _ = compute(inputs)
            loss.backward()
        average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        budget.step += 1
        for module, average in zip((unet, text), averages, strict=True):
            average.update(module, budget.step)
        if rank():
            continue
        log.add(loss=loss.detach(), mse=mse)
        if budget.step % LOGGED_EVERY == 0:
            logger.info("unet %s", log.write(budget, share=round(share, 3), pictures=float(len(data.latents))))
        if time.monotonic() - last_save > 60 * settings.save_minutes or budget.over:
            save_stage(
                path,
                {
                    "unet": unet.state_dict(),
                    "text": tokens.whole(text.state_dict()),
                    "unet_average": averages[0].weights,
                    "text_average": averages[1].weights,
                    "optimisers": [opt.state_dict() for opt in opts],
                    "step": budget.step,
                    "seconds": budget.spent,
                },
            )
            last_save = time.monotonic()
            if on_save is not None and not budget.over:
                on_save(*_averaged(widths, averages, tokens, device), budget.step)
    return _averaged(widths, averages, tokens, device)


def _averaged(
    widths: Widths, averages: tuple[Average, Average], tokens: UsedTokens, device: torch.device
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """New modules with the averaged weights, the text encoder with its whole vocabulary."""
    unet, text = build_unet(widths).to(device), build_text_encoder(widths).to(device)
    unet.load_state_dict(averages[0].weights)
    text.load_state_dict(tokens.whole(averages[1].weights))
    return unet.eval().requires_grad_(False), text.eval().requires_grad_(False)


def _batch(data: LatentSet, count: int, dropout: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Scaled latents (count, 4, h, w) and caption ids (count, 77), a share ``dropout`` of them empty."""
    device = generator.device
    index = torch.randint(len(data.latents), (count,), generator=generator, device=device)
    variant = torch.randint(data.captions.shape[1], (count,), generator=generator, device=device)
    dropped = torch.rand(count, generator=generator, device=device) < dropout
    return data.latents[index] * LATENT_SCALE, torch.where(dropped[:, None], data.empty, data.captions[index, variant])


def held_out_loss(unet: UNet2DConditionModel, text: CLIPTextModel, data: LatentSet, device: torch.device, per_picture: int = 4) -> float:
    """Mean squared error of the predicted noise on pictures that were not trained on; fixed noise, unweighted."""
    generator = torch.Generator().manual_seed(1234)
    alphas = noise_schedule().alphas_cumprod.to(device)
    errors: list[float] = []
    with torch.no_grad():
        for start in range(0, len(data.latents), 32):
            x = (data.latents[start : start + 32] * LATENT_SCALE).to(device)
            hidden = text(data.captions[start : start + 32, 0].to(device)).last_hidden_state
            for _ in range(per_picture):
                t = stratified_timesteps(len(x), 1000, generator).to(device)
                eps = torch.randn(x.shape, generator=generator).to(device)
                a = alphas[t][:, None, None, None]
                out = unet(a.sqrt() * x + (1 - a).sqrt() * eps, t, hidden).sample
                errors.append(float((out - eps).pow(2).mean()))
    return float(np.mean(errors))
