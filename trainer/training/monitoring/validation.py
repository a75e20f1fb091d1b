"""The loss of pictures that are not trained on, at fixed timesteps with fixed noise: comparable from step to step and from run to run."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import partial

from ...core import seeding
from ...core.errors import Cancelled
from ...dataset.loading.kohya_captions import fixed_caption
from ...runs import events
from ...runs.run_folder import validation_history
from .. import micro_batch
from ..batches import Feed
from ..job import Job
from ..learner import Learner
from .step_log import Teller


@dataclass(frozen=True)
class _Probe:
    """One held-out picture at one noise level."""

    item: int
    level: int


def validate(job: Job, feed: Feed, learner: Learner, teller: Teller, epoch: int) -> None:
    """Tell the validation loss of the weights as they are after ``epoch``, if it is due then and not told yet."""
    step, section = learner.step, job.config.validation
    if not job.held_out.items or not job.writes or (epoch % section.every_epochs and step != job.plan.steps):
        return
    if step == job.plan.start_step and any(event.step == step for event in validation_history(job.run.events)):
        return  # stopped after it was told
    with learner.averaged():
        by_timestep = _losses(job, feed, learner)
    loss = sum(by_timestep.values()) / len(by_timestep)
    job.emit(events.Validation(step, epoch, loss, len(job.held_out.items), {str(level): value for level, value in by_timestep.items()}))
    named = {f"validation/timestep {timestep}": value for timestep, value in by_timestep.items()}
    teller.trackers.scalars(step, {"validation": loss, **named})


def timestep_of(level: int, levels: int, count: int) -> int:
    """The timestep of ``level``: the middle of its share of ``count`` timesteps."""
    return (2 * level + 1) * count // (2 * levels)


def _losses(job: Job, feed: Feed, learner: Learner) -> dict[int, float]:
    """Mean squared error by timestep, each the mean over the pictures."""
    import torch

    section, count = job.config.validation, len(job.held_out.items)
    sums = torch.zeros(section.noise_levels, device=job.device)
    batches = _batches(job)
    with learner.evaluating():
        for number, probes in enumerate(batches):
            job.emit(events.Phase("validating", number, len(batches)))
            if job.stop.is_set():
                raise Cancelled
            errors = learner.squared_errors(feed.repairing(partial(_build, probes, job, learner)))
            sums.index_add_(0, torch.tensor([probe.level for probe in probes], device=job.device), errors)
    means = (sums / count).tolist()
    return {timestep_of(level, section.noise_levels, learner.timesteps): mean for level, mean in enumerate(means)}


def _batches(job: Job) -> list[list[_Probe]]:
    """Every picture at every level, in batches of one size."""
    by_size: dict[tuple[int, int], list[_Probe]] = defaultdict(list)
    for index, item in enumerate(job.held_out.items):
        by_size[item.width, item.height] += [_Probe(index, level) for level in range(job.config.validation.noise_levels)]
    size = job.config.training.batch_size
    return [probes[start : start + size] for probes in by_size.values() for start in range(0, len(probes), size)]


def _build(probes: list[_Probe], job: Job, learner: Learner) -> micro_batch.MicroBatch:
    """Plain noise that depends on the picture's content and the level alone; the latent is the posterior's mean, the caption whole."""
    import torch

    section, latents, noises = job.config.validation, [], []
    items = [job.held_out.items[probe.item] for probe in probes]
    captions = [fixed_caption(item, job.held_out.member(probe.item).training) for probe, item in zip(probes, items, strict=True)]
    for probe, item in zip(probes, items, strict=True):
        mean, _ = job.cache.latent(item)
        draw = seeding.generator(section.seed, "validation", int(item.sha256[:15], 16), probe.level)
        latents.append(mean)
        noises.append(torch.randn(mean.shape, generator=draw))
    noise = torch.stack(noises)
    levels = [timestep_of(probe.level, section.noise_levels, learner.timesteps) for probe in probes]
    return micro_batch.MicroBatch(
        latents=torch.stack(latents),
        noise=noise,
        mixed=noise,
        timesteps=torch.tensor(levels),
        conditions=[(learner.tokenize or job.cache.prompt)(caption) for caption in captions],
        weights=torch.ones(len(probes)),
        masks=micro_batch.masks(job.held_out, [(probe.item, False) for probe in probes]),
        framings=[micro_batch.framing(item) for item in items],
    )
