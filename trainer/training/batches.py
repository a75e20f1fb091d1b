"""What the steps are fed with: the order of the pictures, and their batches read ahead from the caches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ..config.sample_prompts import read_prompt
from ..core.devices import return_memory
from ..core.errors import UserError
from ..dataset.loading import batch_order
from ..dataset.loading.caption_variation import caption_at, changes_captions, distinct_prompts, truncation_warning
from ..dataset.loading.kohya_captions import fixed_caption
from ..runs import events
from . import micro_batch
from .cache import fill_latents, fill_prompts
from .distributed import shares
from .job import Job
from .weighted_prompts import prompt_key, prompt_text

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Tokenize = Callable[[str], "dict[str, torch.Tensor]"]
_CACHE_REPAIRS = 16  # damaged cache files that one read puts up with


@dataclass(frozen=True)
class Micro:
    """One forward pass. Its loss counts ``scale / parts`` in the step's, see :class:`~trainer.core.work.processes.Share`."""

    batch: micro_batch.MicroBatch
    scale: float
    parts: int


@dataclass(frozen=True)
class Portion:
    """What one optimiser step is fed with: this process' share. ``images``: of all shares. ``ends_epoch``: it is the epoch's last."""

    epoch: int
    micro_batches: list[Micro]
    images: int
    ends_epoch: bool


class Feed:
    """Fills the caches and reads batches from them."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def fill_caches(self) -> None:
        """Encode what is not in the caches yet: every picture, and every prompt that training and sampling will ask for."""
        job, config = self.job, self.job.config
        asked = [read_prompt(prompt) for prompt in config.sample.prompts] if config.sample.every_epochs else []
        prompts = [prompt_key(prompt.text) for prompt in asked]
        prompts += [prompt_key(config.sample.negative if prompt.negative is None else prompt.negative) for prompt in asked]
        held_out = job.held_out
        prompts += [fixed_caption(item, held_out.member(index).training) for index, item in enumerate(held_out.items)]
        seed, dataset = config.training.seed, job.dataset
        if config.network.text_encoder:  # they are encoded when they are needed, with the weights of the moment
            prompts = []
        for epoch in range(0 if config.network.text_encoder else job.plan.epochs):
            for slot in (slot for batch in self._batches(epoch) for slot in batch):
                hints = dataset.member(slot.item).training
                prompts.append(caption_at(dataset.items[slot.item], hints, seed=seed, epoch=epoch, position=slot.position))
            if not any(changes_captions(member.training) for member in dataset.members):
                break  # captions are the same in every epoch

        def progress(phase: str) -> Any:
            return lambda done, total: job.emit(events.Phase(phase, done, total))

        def warn(message: str) -> None:
            job.emit(events.Warning_(message))

        common = (job.family, job.checkpoint, job.device)
        for dataset in (job.dataset, job.held_out):
            fill_latents(job.cache, dataset, *common, progress("caching latents"), job.stop.is_set)
        if prompts:
            frozen = [module for module in job.frozen if module.component != "unet"]
            prompts = distinct_prompts(prompts)
            fill_prompts(job.cache, prompts, *common, progress("caching prompts"), job.stop.is_set, warn=warn, frozen=frozen)
        return_memory(job.device)

    def warn_of_cut_captions(self) -> None:
        """Say once which caption is longer than what is read of it."""
        job, limit = self.job, self.job.config.training.max_tokens
        named = [
            (f"The caption of {item.file}", fixed_caption(replace(item, caption=line), dataset.member(index).training))
            for dataset in (job.dataset, job.held_out)
            for index, item in enumerate(dataset.items)
            for line in item.caption.split("\n")
        ]
        asked = [read_prompt(prompt) for prompt in job.config.sample.prompts]
        named += [("A validation prompt", prompt_text(prompt.text)) for prompt in asked]
        if warning := truncation_warning(named, limit, lambda: job.family.token_counter(job.checkpoint)):
            job.emit(events.Warning_(warning))

    def warn_of_prompt_flags(self) -> None:
        """Say what of the flags in validation prompts was changed or has no effect."""
        for note in dict.fromkeys(note for prompt in self.job.config.sample.prompts for note in read_prompt(prompt).notes):
            self.job.emit(events.Warning_(f"In a validation prompt: {note}"))

    def repairing(self, read: Callable[[], T]) -> T:
        """What ``read`` gives; a cache file that it finds damaged is made anew."""
        for _ in range(_CACHE_REPAIRS):
            try:
                return read()
            except UserError as error:
                if error.kind != "cache":
                    raise
                self.fill_caches()
        return read()

    def portions(self, step: int, timesteps: int, pool: ThreadPoolExecutor, tokenize: Tokenize | None = None) -> Iterator[Portion]:
        """The steps from ``step`` on, each of ``timesteps`` noise levels; the next one is read while the current one trains.

        With ``tokenize`` batches hold what it makes of captions, instead of their conditionings.
        """
        waiting = None
        for epoch, group, ends in self._planned(step):
            future = pool.submit(self._load, epoch, group, timesteps, tokenize)
            if waiting is not None:
                yield waiting[0](waiting[1].result())
            waiting = (partial(_portion, epoch, group, ends), future)
        if waiting is not None:
            yield waiting[0](waiting[1].result())

    def _load(self, epoch: int, group: list[list[batch_order.Slot]], timesteps: int, tokenize: Tokenize | None) -> list[Micro]:
        job = self.job
        settings = job.config.objective
        where: dict[str, Any] = {"seed": job.config.training.seed, "epoch": epoch, "timesteps": timesteps, "tokenize": tokenize}

        def build(slots: Sequence[batch_order.Slot]) -> micro_batch.MicroBatch:
            batch = micro_batch.build(slots, job.dataset, job.cache, settings, **where)
            return batch.pinned() if job.device.type == "cuda" else batch

        mine = shares(group, job.processes)
        return [Micro(self.repairing(partial(build, share.slots)), share.scale, share.parts) for share in mine]

    def _planned(self, step: int) -> Iterator[tuple[int, list[list[batch_order.Slot]], bool]]:
        """(epoch, micro-batches, whether the epoch ends) for every step from ``step`` on."""
        plan = self.job.plan
        first, offset = divmod(step, plan.steps_per_epoch)
        done = step
        for epoch in range(first, plan.epochs):
            groups = batch_order.group(self._batches(epoch), self.job.config.training.gradient_accumulation)
            for index in range(offset, len(groups)):
                if done == plan.steps:
                    return
                done += 1
                yield epoch, groups[index], index == len(groups) - 1
            offset = 0

    def _batches(self, epoch: int) -> list[list[batch_order.Slot]]:
        items, training = self.job.dataset.items, self.job.config.training
        sizes = [(item.width, item.height) for item in items]
        repeats = [item.repeats for item in items]
        return batch_order.epoch_batches(sizes, repeats, training.batch_size, seed=training.seed, epoch=epoch)


def _portion(epoch: int, group: list[list[batch_order.Slot]], ends_epoch: bool, micro_batches: list[Micro]) -> Portion:
    return Portion(epoch, micro_batches, sum(map(len, group)), ends_epoch)
