"""Data parallelism over a few single-threaded processes on one machine.

On a CPU that other programs use too, processes that meet once a step get far more done than the threads of
one process, which wait for each other in every operation. On a GPU, or with one process, nothing here acts.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """This process's rank; 0 logs and saves."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """The number of training processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every gradient by its mean over the processes."""
    if world() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= world()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def agree(value: float) -> float:
    """The first process's value in every process, so that all make the same decisions."""
    if world() == 1:
        return value
    box = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(box, src=0)
    return float(box[0])


def gather(part: Tensor) -> Tensor:
    """The rows of all processes in the order of their ranks; the parts may differ in length."""
    if world() == 1:
        return part
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(world())]
    dist.all_gather(lengths, torch.tensor([len(part)]))
    longest = max(int(n) for n in lengths)
    padded = torch.cat([part, part.new_zeros(longest - len(part), *part.shape[1:])])
    parts = [torch.zeros_like(padded) for _ in range(world())]
    dist.all_gather(parts, padded)
    return torch.cat([p[: int(n)] for p, n in zip(parts, lengths, strict=True)])


def wait() -> None:
    """Wait for all processes."""
    if world() > 1:
        dist.barrier()
