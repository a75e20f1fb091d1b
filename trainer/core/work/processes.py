"""Several processes that train one LoRA together.

Batch size and accumulation describe a step of the whole run, whatever the number of processes. Each image of a step is computed by exactly
one process, so the number of processes changes the speed and not the result.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class ProcessGroup:
    """The rank of this process and the number of processes."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes events, images, states and the LoRA."""
        return self.rank == 0


def current_process_group() -> ProcessGroup:
    """The group that the launcher (accelerate, torchrun) states in the environment."""
    return ProcessGroup(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
