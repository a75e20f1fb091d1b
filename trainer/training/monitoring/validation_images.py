"""Validation images with fixed seeds: the same noise after every epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...config.sample_prompts import SamplePrompt, read_prompt
from ...core import seeding
from ...core.devices import return_memory
from ...core.errors import Cancelled
from ...core.files.image_file import load_image
from ...core.files.writing import atomic_path
from ...runs import events
from ...runs.event_log import read_events_of
from ..caching.weighted_prompts import prompt_key
from ..opened_run import BaseModel
from .evaluation import Evaluation
from .latent_sampling import decode_to_image, sample_latents

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ValidationImages(Evaluation):
    """Makes the validation images of a run; ``resolution`` is the size of those whose size no setting gives."""

    resolution: int
    base: BaseModel

    def make(self, epoch: int) -> bool:
        """Sample every prompt with the weights after ``epoch``, if images are due then; epoch 0 is the base model before training.

        Whether they are due. Raises Cancelled, and UserError when the checkpoint is gone.
        """
        sample, step = self.config.sample, self.state.step
        if not (sample.prompts and sample.every_epochs) or (epoch % sample.every_epochs and step != self.plan.steps):
            return False
        if not self._are_made(epoch):
            self._make(epoch, self._path)
        return True

    def make_now(self, epoch: int) -> None:
        """Sample every prompt with the weights of this step of ``epoch``, due or not; the images at the end of the epoch come besides.

        Raises as ``make``.
        """
        self._make(epoch, lambda _epoch, index: self.outputs.run.samples / f"step-{self.state.step:06d}-{index:02d}.png")

    def _make(self, epoch: int, place: Callable[[int, int], Path]) -> None:
        import torch

        sample, step = self.config.sample, self.state.step
        self.base.guard.require_unchanged()  # before minutes are spent on latents that could not be decoded
        with self.state.averaged():
            latents = self._sample_latents()
        vae: Any = self.base.family.load_vae(self.base.checkpoint, torch.float32).to(self.hardware.device)
        for index, latent in enumerate(latents):
            path = place(epoch, index)
            with atomic_path(path) as temporary:
                decode_to_image(self.base.family, vae, latent).save(temporary, format="PNG")
            self.outputs.emit(events.Sample(str(path), read_prompt(sample.prompts[index]).text, epoch, step, index))
            self.outputs.trackers.image(step, f"samples/{index}", path, sample.prompts[index])
        del vae
        return_memory(self.hardware.device)

    def _are_made(self, epoch: int) -> bool:
        """Whether this step has its images already: the run was stopped after they were made, or continues one that made them."""
        made = read_events_of(self.outputs.run.events, events.Sample) if self.state.step == self.plan.start_step else []
        prompts = {event.index: event.prompt for event in made if (event.epoch, event.step) == (epoch, self.state.step)}
        wanted = {index: read_prompt(line).text for index, line in enumerate(self.config.sample.prompts)}
        return prompts == wanted and all(self._path(epoch, index).is_file() for index in wanted)

    def _sample_latents(self) -> list[torch.Tensor]:
        sample, denoiser = self.config.sample, self.model.denoiser
        multiple = self.base.family.latents.multiple
        width, height = (side // multiple * multiple for side in (sample.width or self.resolution, sample.height or self.resolution))
        denoiser.eval()
        try:
            return self._sample_all(width, height)
        finally:
            denoiser.train()

    def _sample_all(self, width: int, height: int) -> list[torch.Tensor]:
        sample, hardware = self.config.sample, self.hardware
        latents = []
        for index, line in enumerate(sample.prompts):
            prompt = read_prompt(line)
            negative = sample.negative if prompt.negative is None else prompt.negative
            self.outputs.emit(events.Phase("sampling", index, len(sample.prompts)))
            result = sample_latents(
                self.model.denoiser,
                self.base.family,
                self._conditioning(prompt.text),
                self._conditioning(negative),
                width=prompt.width or width,
                height=prompt.height or height,
                steps=prompt.steps or sample.steps,
                guidance=sample.guidance if prompt.guidance is None else prompt.guidance,
                generator=_generator(prompt, sample.seed, index),
                prediction=self.base.prediction,
                shift=sample.shift,
                device=hardware.device,
                dtype=hardware.dtype,
                stop=self.stop,
            )
            if result is None:
                raise Cancelled
            latents.append(result.cpu())
        return latents

    def _conditioning(self, prompt: str) -> dict[str, torch.Tensor]:
        return self.model.conditioning(prompt_key(prompt), self.cache)

    def _path(self, epoch: int, index: int) -> Path:
        return self.outputs.run.samples / f"epoch-{epoch:03d}-{index:02d}.png"


def thumbnail(samples: Path) -> Any:
    """The newest image of the first prompt in the folder ``samples``, a PIL image; None without any."""
    newest = sorted(samples.glob("epoch-*-00.png"))
    return load_image(newest[-1]) if newest else None


def _generator(prompt: SamplePrompt, seed: int, index: int) -> torch.Generator:
    """For the noise: seeded with the prompt's own seed as in ``python -m trainer sample``, else with the common one and the place in the
    list."""
    import torch

    if prompt.seed is None:
        return seeding.generator(seed, "sample", index)
    return torch.Generator().manual_seed(prompt.seed)
