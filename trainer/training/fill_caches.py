"""Fill the caches of a run: every image, and every prompt that training and validation images will need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..config.run_config import RunConfig
from ..config.sample_prompts import read_prompt
from ..config.sections.sample import SampleSection
from ..core.devices import return_memory
from ..dataset.loading.caption_variation import caption_at, changes_captions, distinct_prompts, truncation_warning
from ..dataset.loading.kohya_captions import fixed_caption
from ..runs import events
from ..runs.run_plan import RunPlan
from .batch_loader import batches_of_epoch
from .caching.cache import Cache
from .caching.latent_cache import fill_latents
from .caching.prompt_cache import fill_prompts
from .caching.weighted_prompts import prompt_key, prompt_text
from .event_writer import EventLog
from .opened_run import BaseModel, Datasets

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class CacheFiller:
    """Encodes what is missing in ``cache``, with the models of ``base`` on ``device``."""

    config: RunConfig
    plan: RunPlan
    datasets: Datasets
    cache: Cache
    base: BaseModel
    device: torch.device
    emit: EventLog
    stop: Callable[[], bool]

    def fill(self) -> None:
        """Encode images and prompts. A text encoder that is trained encodes prompts during training, with its weights of that moment."""
        models = (self.base.family, self.base.checkpoint, self.device)
        for dataset in (self.datasets.training, self.datasets.held_out):
            fill_latents(self.cache, dataset, *models, self._progress("caching latents"), self.stop)
        if not self.config.network.text_encoder and (prompts := self._prompts()):
            frozen, progress = self.base.frozen_text_lora, self._progress("caching prompts")
            fill_prompts(self.cache, distinct_prompts(prompts), *models, progress, self.stop, warn=self._warn, frozen=frozen)
        return_memory(self.device)

    def fill_sample_prompts(self, sample: SampleSection) -> None:
        """Encode prompts of validation images that came during the training. On the CPU, as the denoiser may fill the GPU."""
        if self.config.network.text_encoder:
            return
        import torch

        models, progress = (self.base.family, self.base.checkpoint, torch.device("cpu")), self._progress("caching prompts")
        fill_prompts(self.cache, _prompt_keys(sample), *models, progress, self.stop, warn=self._warn, frozen=self.base.frozen_text_lora)

    def warn_of_prompts(self) -> None:
        """Warn of captions that are longer than what is read of them, and of flags in sample prompts that have no effect."""
        sample_prompts = [read_prompt(prompt) for prompt in self.config.sample.prompts]
        named = [
            (f"The caption of {item.file}", fixed_caption(replace(item, caption=line), dataset.member(index).training))
            for dataset in (self.datasets.training, self.datasets.held_out)
            for index, item in enumerate(dataset.items)
            for line in item.caption.split("\n")
        ]
        named += [("A validation prompt", prompt_text(prompt.text)) for prompt in sample_prompts]
        limit = self.cache.text.max_tokens
        if warning := truncation_warning(named, limit, lambda: self.base.family.token_counter(self.base.checkpoint)):
            self._warn(warning)
        for note in dict.fromkeys(note for prompt in sample_prompts for note in prompt.notes):
            self._warn(f"In a validation prompt: {note}")

    def _prompts(self) -> list[str]:
        prompts = _sample_prompts(self.config.sample)
        held_out = self.datasets.held_out
        prompts += [fixed_caption(item, held_out.member(index).training) for index, item in enumerate(held_out.items)]
        return prompts + self._captions()

    def _captions(self) -> list[str]:
        """The captions of the run in all their variations."""
        dataset, training = self.datasets.training, self.config.training
        captions = []
        for epoch in range(self.plan.epochs):
            for batch in batches_of_epoch(dataset, training.batch_size, training.seed, epoch):
                for slot in batch:
                    settings = dataset.member(slot.item).training
                    item = dataset.items[slot.item]
                    captions.append(caption_at(item, settings, seed=training.seed, epoch=epoch, position=slot.position))
            if not any(changes_captions(member.training) for member in dataset.members):
                break  # captions are the same in every epoch
        return captions

    def _progress(self, phase: str) -> Any:
        return lambda done, total: self.emit(events.Phase(phase, done, total))

    def _warn(self, message: str) -> None:
        self.emit(events.Warning_(message))


def _sample_prompts(sample: SampleSection) -> list[str]:
    """The keys of the prompts of validation images."""
    return _prompt_keys(sample) if sample.every_epochs else []


def _prompt_keys(sample: SampleSection) -> list[str]:
    prompts = [read_prompt(prompt) for prompt in sample.prompts]
    negatives = [sample.negative if prompt.negative is None else prompt.negative for prompt in prompts]
    return [prompt_key(prompt.text) for prompt in prompts] + [prompt_key(negative) for negative in negatives]
