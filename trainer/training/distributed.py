"""How several processes divide a step's images, and accelerate's view of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..dataset.loading.batch_order import Slot

if TYPE_CHECKING:
    from .job import Job
from ..core.work.processes import ProcessGroup


@dataclass(frozen=True)
class Share:
    """A process' part of one of a step's micro-batches: its images; the mean of their losses counts ``scale / parts``.

    Summed over all shares of a step and averaged over the processes, as gradients are, that is the mean over the step's
    micro-batches (``parts``) of the mean over each one's images. ``scale`` is 1 in a run of one process, and 0 where a process
    only keeps the others company.
    """

    slots: tuple[Slot, ...]
    scale: float
    parts: int


def shares(batches: Sequence[Sequence[Slot]], processes: ProcessGroup) -> list[Share]:
    """What one process computes of a step's micro-batches; at least one share, since every process has to join the exchange.

    Images are dealt out in turn, beginning one process later with every micro-batch: with one image a batch, too, accumulation
    is shared evenly.
    """
    rank, world = processes.rank, processes.world_size
    mine: list[Share] = []
    for number, batch in enumerate(batches):
        own = tuple(slot for place, slot in enumerate(batch) if (number + place) % world == rank)
        if own:
            mine.append(Share(own, world * len(own) / len(batch), len(batches)))
    return mine or [Share((batches[0][0],), 0.0, len(batches))]


def make_accelerator(job: Job) -> Any:
    """accelerate's view of the processes, device and precision; starts their communication, so every process has to call it."""
    from accelerate import Accelerator, InitProcessGroupKwargs

    # the others wait while the first fills caches and paints images; a hanging run is ended by its parent
    patience = InitProcessGroupKwargs(timeout=timedelta(days=1))
    return Accelerator(
        mixed_precision="no" if job.precision == "fp32" else job.precision,
        cpu=job.device.type == "cpu",
        kwargs_handlers=[patience],
    )
