"""What one measurement trains: model, resolution, batch, precision."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """What is trained, the same for every trainer. ``resolution`` in pixels."""

    model: str
    resolution: int
    batch: int
    rank: int
    precision: str
    device: str
    steps: int
    checkpointing: bool
