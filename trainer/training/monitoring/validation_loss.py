"""The loss on held-out images, at fixed timesteps with fixed noise: comparable from step to step and from run to run."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...core import seeding
from ...core.errors import Cancelled
from ...dataset import Dataset
from ...dataset.loading.kohya_captions import fixed_caption
from ...objective import denoising_loss
from ...objective.noise_process import NOISE_LEVELS
from ...runs import events
from ...runs.event_log import validation_history
from ..micro_batch import MicroBatch, framing, load_masks
from ..model import TrainedModel
from .evaluation import Evaluation

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class _Probe:
    """One held-out image at one noise level."""

    item: int
    level: int


@dataclass(frozen=True)
class HeldOutValidation(Evaluation):
    """Measures the validation loss of ``dataset``, the held-out images."""

    dataset: Dataset

    def run(self, epoch: int) -> None:
        """Log the validation loss of the weights after ``epoch``, if it is due and not logged yet. Raises Cancelled."""
        step, every = self.state.step, self.config.validation.every_epochs
        if not self.dataset.items or (epoch % every and step != self.plan.steps):
            return
        if step == self.plan.start_step and any(event.step == step for event in validation_history(self.outputs.run.events)):
            return  # the run was stopped after that
        with self.state.averaged():
            by_timestep = self._losses()
        loss = sum(by_timestep.values()) / len(by_timestep)
        levels = {str(timestep): value for timestep, value in by_timestep.items()}
        self.outputs.emit(events.Validation(step, epoch, loss, len(self.dataset.items), levels))
        named = {f"validation/timestep {timestep}": value for timestep, value in by_timestep.items()}
        self.outputs.trackers.scalars(step, {"validation": loss, **named})

    def _losses(self) -> dict[int, float]:
        """Mean squared error by timestep, each the mean over the images."""
        import torch

        levels, device = self.config.validation.noise_levels, self.hardware.device
        sums = torch.zeros(levels, device=device)
        batches = self._batches()
        with self.model.evaluating():
            for number, probes in enumerate(batches):
                self.outputs.emit(events.Phase("validating", number, len(batches)))
                if self.stop():
                    raise Cancelled
                errors = squared_errors(self.model, self._build(probes))
                sums.index_add_(0, torch.tensor([probe.level for probe in probes], device=device), errors)
        means = (sums / len(self.dataset.items)).tolist()
        return {middle_of(level, levels): mean for level, mean in enumerate(means)}

    def _batches(self) -> list[list[_Probe]]:
        """Every image at every level, in batches of one size."""
        by_size: dict[tuple[int, int], list[_Probe]] = defaultdict(list)
        for index, item in enumerate(self.dataset.items):
            by_size[item.width, item.height] += [_Probe(index, level) for level in range(self.config.validation.noise_levels)]
        size = self.config.training.batch_size
        return [probes[start : start + size] for probes in by_size.values() for start in range(0, len(probes), size)]

    def _build(self, probes: list[_Probe]) -> MicroBatch:
        """Plain noise that depends only on the image's content and the level; the latent is the posterior's mean, the caption whole."""
        import torch

        section, dataset = self.config.validation, self.dataset
        items = [dataset.items[probe.item] for probe in probes]
        captions = [fixed_caption(item, dataset.member(probe.item).training) for probe, item in zip(probes, items, strict=True)]
        latents, noises = [], []
        for probe, item in zip(probes, items, strict=True):
            mean, _ = self.cache.latent(item)
            generator = seeding.generator(section.seed, "validation", int(item.sha256[:15], 16), probe.level)
            latents.append(mean)
            noises.append(torch.randn(mean.shape, generator=generator))
        noise = torch.stack(noises)
        rows, columns = noise.shape[-2:]
        return MicroBatch(
            latents=torch.stack(latents),
            noise=noise,
            input_noise=noise,
            timesteps=self.model.noise_process.timesteps_at([middle_of(probe.level, section.noise_levels) for probe in probes]),
            conditions=[(self.model.tokenize or self.cache.prompt)(caption) for caption in captions],
            weights=torch.ones(len(probes)),
            masks=load_masks(dataset, [(probe.item, False) for probe in probes], rows, columns),
            framings=[framing(item) for item in items],
        )


def squared_errors(model: TrainedModel, batch: MicroBatch) -> torch.Tensor:
    """The mean squared error of each image, (batch,) in fp32: no setting of the objective weights it."""
    inputs = model.to_device(batch, train_text=False)
    process, timesteps = model.noise_process, inputs["timesteps"]
    noisy_latents = process.add_noise(inputs["latents"], inputs["input_noise"], timesteps)
    prediction = model.predict(noisy_latents, process.denoiser_timesteps(timesteps), inputs["conditioning"])
    target = process.target(inputs["latents"], inputs["noise"], timesteps)
    return denoising_loss.mean_by_image((prediction.float() - target.float()).square(), inputs["masks"])


def middle_of(level: int, levels: int) -> int:
    """The middle of the ``level``-th of ``levels`` equal parts of ``NOISE_LEVELS``."""
    return (2 * level + 1) * NOISE_LEVELS // (2 * levels)
