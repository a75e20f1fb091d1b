"""The work of one measurement: model, resolution, batch, precision."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """The training that every trainer does alike. ``resolution`` in pixels."""

    model: str
    resolution: int
    batch: int
    rank: int
    precision: str
    device: str
    steps: int
    checkpointing: bool
