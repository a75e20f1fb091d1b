"""The batches of each optimiser step, in their order, read ahead from the caches."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..config.run_config import RunConfig
from ..core.work.processes import ProcessGroup
from ..dataset import Dataset
from ..dataset.loading import batch_order
from ..objective.noise_process import NoiseProcess
from ..runs.run_plan import RunPlan
from .caching.cache import CacheReader
from .distributed import divide
from .micro_batch import MicroBatch, build_micro_batch

if TYPE_CHECKING:
    import torch

Tokenize = Callable[[str], "dict[str, torch.Tensor]"]
Group = list[list[batch_order.Slot]]
"""The micro-batches of one optimiser step."""


@dataclass(frozen=True)
class StepBatch:
    """The inputs of one optimiser step: this process' micro-batches. ``images`` counts those of all processes; ``ends_epoch``: it is the
    last step of its epoch."""

    epoch: int
    micro_batches: list[MicroBatch]
    images: int
    ends_epoch: bool


class BatchLoader:
    """Builds the batches of a run of ``plan.steps`` steps. ``pin_memory``: in page-locked memory, for a GPU."""

    def __init__(
        self, config: RunConfig, plan: RunPlan, dataset: Dataset, cache: CacheReader, processes: ProcessGroup, *, pin_memory: bool
    ) -> None:
        self._config, self._plan, self._dataset, self._cache = config, plan, dataset, cache
        self._processes, self._pin_memory = processes, pin_memory

    def steps(self, first: int, process: NoiseProcess, tokenize: Tokenize | None = None) -> Generator[StepBatch, None, None]:
        """The batches of all steps from ``first`` on, counted from 0. The next one is built while the current one trains.

        ``process`` draws the timesteps. With ``tokenize``, batches have token ids instead of conditionings.
        """
        with ThreadPoolExecutor(1, "batches") as pool:
            waiting: tuple[StepBatch, Future[list[MicroBatch]]] | None = None
            for empty, group in self._planned(first):
                future = pool.submit(self._build, empty.epoch, group, process, tokenize)
                if waiting is not None:
                    yield replace(waiting[0], micro_batches=waiting[1].result())
                waiting = (empty, future)
            if waiting is not None:
                yield replace(waiting[0], micro_batches=waiting[1].result())

    def _planned(self, first: int) -> Iterator[tuple[StepBatch, Group]]:
        """Each step's batch, still without micro-batches, and the images for these."""
        training, plan = self._config.training, self._plan
        first_epoch, offset = divmod(first, plan.steps_per_epoch)
        step = first
        for epoch in range(first_epoch, plan.epochs):
            batches = batches_of_epoch(self._dataset, training.batch_size, training.seed, epoch)
            groups = batch_order.group(batches, training.gradient_accumulation)
            for index in range(offset, len(groups)):
                if step == plan.steps:
                    return
                step += 1
                yield StepBatch(epoch, [], sum(map(len, groups[index])), index == len(groups) - 1), groups[index]
            offset = 0

    def _build(self, epoch: int, group: Group, process: NoiseProcess, tokenize: Tokenize | None) -> list[MicroBatch]:
        settings, seed = self._config.objective, self._config.training.seed
        micro_batches = []
        for share in divide(group, self._processes):
            batch = build_micro_batch(share.slots, self._dataset, self._cache, settings, process, seed=seed, epoch=epoch, tokenize=tokenize)
            batch = replace(batch, scale=share.scale, accumulated=share.accumulated)
            micro_batches.append(batch.pinned() if self._pin_memory else batch)
        return micro_batches


def batches_of_epoch(dataset: Dataset, batch_size: int, seed: int, epoch: int) -> list[list[batch_order.Slot]]:
    """The batches of ``epoch`` in their order."""
    sizes = [(item.width, item.height) for item in dataset.items]
    repeats = [item.repeats for item in dataset.items]
    return batch_order.epoch_batches(sizes, repeats, batch_size, seed=seed, epoch=epoch)
