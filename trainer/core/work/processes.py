"""Several processes that train one LoRA together: who this one is, and which images of a step are its own.

A run's batch size and accumulation describe a step of the whole run, however many processes share it. Every image of a step is
computed by exactly one process, so that the number of processes changes the speed and not the result.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Processes:
    """This process' number, 0 for the one that writes, and how many train together."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes events, images, states and the LoRA."""
        return self.rank == 0


def current() -> Processes:
    """As the launcher (accelerate, torchrun) says in the environment."""
    return Processes(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
