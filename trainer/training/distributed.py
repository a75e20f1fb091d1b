"""How several processes divide the images of a step and average its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..core.work.processes import ProcessGroup
from ..dataset.loading.batch_order import Slot

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Share:
    """A process' part of one of a step's micro-batches. The mean of its images' losses counts ``scale / accumulated``.

    Summed over all shares of a step and averaged over the processes, as gradients are, that is the mean over the step's micro-batches
    (``accumulated``) of the mean over each one's images. ``scale`` is 1 in a run of one process, and 0 for a process that has no image in
    this step.
    """

    slots: tuple[Slot, ...]
    scale: float
    accumulated: int


def divide(batches: Sequence[Sequence[Slot]], processes: ProcessGroup) -> list[Share]:
    """This process' shares of a step's micro-batches; at least one, since every process has to take part in averaging the gradients.

    Images are dealt out in turn, starting one process later with every micro-batch: so accumulation over batches of one image is divided
    evenly, too.
    """
    rank, world = processes.rank, processes.world_size
    shares: list[Share] = []
    for number, batch in enumerate(batches):
        own = tuple(slot for place, slot in enumerate(batch) if (number + place) % world == rank)
        if own:
            shares.append(Share(own, world * len(own) / len(batch), len(batches)))
    return shares or [Share((batches[0][0],), 0.0, len(batches))]


def make_accelerator(device: torch.device, precision: str) -> Any:
    """accelerate's view of the processes, device and precision. Starts the communication, so every process has to call it."""
    from accelerate import Accelerator, InitProcessGroupKwargs

    # the others wait while the first fills the caches and makes validation images; a run that hangs is ended by its parent
    timeout = InitProcessGroupKwargs(timeout=timedelta(days=1))
    return Accelerator(mixed_precision="no" if precision == "fp32" else precision, cpu=device.type == "cpu", kwargs_handlers=[timeout])


def average_over_processes(accelerator: Any, loss: torch.Tensor, parameters: Sequence[torch.nn.Parameter]) -> torch.Tensor:
    """Average the gradients of ``parameters`` over the processes, in one message; returns the average of their ``loss``.

    One message for all trained models together: DDP would wrap each and wait for each.
    """
    if accelerator.num_processes == 1:
        return loss
    import torch

    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat: torch.Tensor = accelerator.reduce(torch.cat([loss.reshape(1), *(gradient.flatten() for gradient in gradients)]), "mean")
    averages = flat[1:].split([gradient.numel() for gradient in gradients])
    for gradient, average in zip(gradients, averages, strict=True):
        gradient.copy_(average.view_as(gradient))
    return flat[0]
