"""Validation images with fixed seeds: the same noise after every epoch."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...config.sample_prompts import SamplePrompt, read_prompt
from ...core import seeding
from ...core.devices import return_memory
from ...core.errors import Cancelled
from ...core.files.image_file import load_image
from ...core.files.writing import atomic_path
from ...runs import events
from ..batches import Feed
from ..job import Job
from ..learner import Learner
from ..weighted_prompts import prompt_key
from .preview_sampling import decode, sample_latents
from .step_log import Teller

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

    job.require_checkpoint()  # before minutes are spent on what could not be decoded
    with learner.averaged():
        latents = _sample_latents(job, feed, learner)
    vae: Any = job.family.load_vae(job.checkpoint, torch.float32).to(job.device)
    for index, latent in enumerate(latents):
        path = _path(job, epoch, index)
        with atomic_path(path) as temporary:
            decode(vae, latent).save(temporary, format="PNG")
        job.emit(events.Sample(str(path), read_prompt(sample.prompts[index]).text, epoch, step, index))
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
    model.eval()
    latents = []
    for index, line in enumerate(sample.prompts):
        prompt = read_prompt(line)
        negative = sample.negative if prompt.negative is None else prompt.negative
        job.emit(events.Phase("sampling", index, len(sample.prompts)))
        result = sample_latents(
            model,
            job.family,
            condition(prompt.text),
            condition(negative),
            width=prompt.width or width,
            height=prompt.height or height,
            steps=prompt.steps or sample.steps,
            guidance=sample.guidance if prompt.guidance is None else prompt.guidance,
            generator=_generator(prompt, sample.seed, index),
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


def _generator(prompt: SamplePrompt, seed: int, index: int) -> torch.Generator:
    """The noise's: from the prompt's own seed as in ``python -m trainer sample``, else from the seed of all and the place in the list."""
    import torch

    if prompt.seed is None:
        return seeding.generator(seed, "sample", index)
    return torch.Generator().manual_seed(prompt.seed)


def _path(job: Job, epoch: int, index: int) -> Path:
    return job.run.samples / f"epoch-{epoch:03d}-{index:02d}.png"
