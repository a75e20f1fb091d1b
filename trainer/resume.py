"""States that a run resumes from: LoRA weights, optimiser and step count, with a checksum.

Noise, order and captions are drawn from counters (``counters``), so the step count is the whole position.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import PARTIAL, replace, sha256_file, write_atomic

_STATE = "state.pt"
_RECORD = "state.json"
STATE_FILES = (_STATE, _RECORD)


@dataclass(frozen=True)
class Saved:
    """One saved state."""

    path: Path
    step: int


def state_folder(folder: Path, step: int) -> Path:
    """Where the state after ``step`` lies."""
    return folder / f"step-{step:06d}"


def save(folder: Path, step: int, values: Mapping[str, Any]) -> Saved:
    """Write ``values`` (tensors and plain data) as ``folder/step-000123``; the folder appears only when it is whole."""
    import torch

    final = state_folder(folder, step)
    partial = folder / f"{PARTIAL}{step:06d}-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with (partial / _STATE).open("wb") as file:
            torch.save(dict(values), file)
            file.flush()
            os.fsync(file.fileno())
        write_atomic(partial / _RECORD, json.dumps({"step": step, "sha256": sha256_file(partial / _STATE)}))
        if final.exists():
            shutil.rmtree(final)
        replace(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Saved(final, step)


def newest(folder: Path) -> tuple[Saved, dict[str, Any]] | tuple[None, None]:
    """The newest state whose checksum holds, with its values; damaged ones are passed over. (None, None) without any."""
    for path in sorted(folder.glob("step-*"), key=_number, reverse=True):
        found = _read(path)
        if found is not None:
            return found
    return None, None


def _read(path: Path) -> tuple[Saved, dict[str, Any]] | None:
    """The state in a folder; None when it is damaged or no state."""
    import torch

    try:
        record = json.loads((path / _RECORD).read_text(encoding="utf-8"))
        if sha256_file(path / _STATE) != record["sha256"]:
            return None
        values = torch.load(path / _STATE, map_location="cpu", weights_only=True)
        return (Saved(path, int(record["step"])), values) if isinstance(values, dict) else None
    except Exception:  # a damaged or foreign file makes torch raise anything, and an earlier state may be whole
        return None


def newest_step(folder: Path) -> int:
    """The step of the newest state, without reading it; 0 without any."""
    return max((_number(path.parent) for path in folder.glob(f"step-*/{_STATE}")), default=0)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the ``keep`` newest states (0 keeps all). The LoRA files beside them stay."""
    old = sorted(folder.glob(f"step-*/{_STATE}"), key=lambda path: _number(path.parent), reverse=True)[keep:] if keep else []
    for path in old:
        with suppress(OSError):  # one that another program has open can stay for now
            path.with_name(_RECORD).unlink(missing_ok=True)
            path.unlink()
            path.parent.rmdir()  # without a LoRA there is nothing in it


def _number(path: Path) -> int:
    digits = path.name.removeprefix("step-")
    return int(digits) if digits.isdecimal() and digits.isascii() else -1
