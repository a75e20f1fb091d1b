"""Validation images with fixed seeds: the same noise after every epoch."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import counters, events
from .devices import return_memory
from .errors import Cancelled
from .feed import Feed
from .files import atomic_path
from .image_file import load_image
from .job import Job
from .learner import Learner
from .sampling import decode, sample_latents
from .telling import Teller
from .weighted_prompts import prompt_key

if TYPE_CHECKING:
    import torch


def make_sample_images(job: Job, feed: Feed, learner: Learner, teller: Teller, epoch: int) -> None:
    """Paint every prompt with the weights as they are after ``epoch``, if images are due then; epoch 0 is the base before training."""
    sample, step = job.config.sample, learner.step
    if not (sample.prompts and sample.every_epochs) or not job.writes:
        return
    if epoch % sample.every_epochs and step != job.plan.steps:
        return
    if _path(job, epoch, len(sample.prompts) - 1).is_file():
        return
    import torch

    with learner.averaged():
        latents = _sample_latents(job, feed, learner)
    vae: Any = job.family.load_vae(job.checkpoint, torch.float32).to(job.device)
    for index, latent in enumerate(latents):
        path = _path(job, epoch, index)
        with atomic_path(path) as temporary:
            decode(vae, latent).save(temporary, format="PNG")
        job.emit(events.Sample(str(path), sample.prompts[index], epoch, step, index))
        teller.trackers.image(step, f"samples/{index}", path, sample.prompts[index])
    del vae
    return_memory(job.device)


def thumbnail(job: Job) -> Any:
    """The newest image of the first prompt, a PIL image, or None without any."""
    newest = sorted(job.run.samples.glob("epoch-*-00.png"))
    if not newest:
        return None
    return load_image(newest[-1])


def _sample_latents(job: Job, feed: Feed, learner: Learner) -> list[torch.Tensor]:
    sample, model = job.config.sample, learner.model

    def condition(prompt: str) -> dict[str, torch.Tensor]:
        key = prompt_key(prompt)
        return learner.prompt(key) or feed.repairing(partial(job.cache.prompt, key))

    width, height = (side // 8 * 8 for side in (sample.width or job.dataset.resolution, sample.height or job.dataset.resolution))
    negative = condition(sample.negative)
    model.eval()
    latents = []
    for index, prompt in enumerate(sample.prompts):
        job.emit(events.Phase("sampling", index, len(sample.prompts)))
        result = sample_latents(
            model,
            job.family,
            condition(prompt),
            negative,
            width=width,
            height=height,
            steps=sample.steps,
            guidance=sample.guidance,
            generator=counters.generator(sample.seed, "sample", index),
            prediction=job.prediction,
            device=job.device,
            dtype=job.dtype,
            stop=job.stop.is_set,
        )
        if result is None:
            raise Cancelled
        latents.append(result.cpu())
    model.train()
    return latents


def _path(job: Job, epoch: int, index: int) -> Path:
    return job.run.samples / f"epoch-{epoch:03d}-{index:02d}.png"
