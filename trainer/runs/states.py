"""States that a run resumes from: LoRA weights, optimiser state and step count, with checksums.

Noise, image order and captions are functions of the seed and the step (``core/seeding.py``), so the step count is the complete position. It
is in the name of the state's folder, in its record, which has a checksum of itself and of the state, and in the learning-rate schedule. A
state in which they differ is not used.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.diagnosis import first_line
from ..core.files.reading import is_link, sha256_file
from ..core.files.sealed_json import read_sealed, write_sealed
from ..core.files.writing import PARTIAL, link_or_copy, replace

_STATE = "state.pt"
_RECORD = "state.json"
_OLD_RECORD = ("step", "sha256")  # the fields of a record before it had a checksum of itself
STATE_FILES = (_STATE, _RECORD)


@dataclass(frozen=True)
class Saved:
    """One saved state."""

    path: Path
    step: int


def state_folder(folder: Path, step: int) -> Path:
    """The folder of the state after ``step``."""
    return folder / f"step-{step:06d}"


def state_folders(folder: Path) -> list[Path]:
    """The folders of states. A link is not ours: its target is neither read nor deleted."""
    return [path for path in folder.glob("step-*") if not is_link(path)]


def save(folder: Path, step: int, values: Mapping[str, Any], *, run: str = "") -> Saved:
    """Write ``values`` (tensors and plain data) as ``folder/step-000123``; the folder appears only when it is complete.

    ``run``: the identity of the run that the state belongs to.
    """
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
        write_sealed(partial / _RECORD, {"step": step, "run": run, "sha256": sha256_file(partial / _STATE)})
        if is_link(final) or final.is_file():
            final.unlink()
        elif final.exists():
            shutil.rmtree(final)
        replace(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Saved(final, step)


def newest(
    folder: Path, *, run: str = "", last_step: int | None = None, skipped: Callable[[Path, str], None] | None = None
) -> tuple[Saved, dict[str, Any]] | tuple[None, None]:
    """The newest undamaged state, with its values; (None, None) if there is none.

    ``run``: the identity that states must have, if they have one. ``last_step``: the last step of the run; later states are not used.
    ``skipped`` is called with the path of each newer state that cannot be used, and the reason.
    """
    for path in sorted(folder.glob("step-*"), key=_number, reverse=True):
        if not any((path / name).exists() for name in STATE_FILES):  # pruned: it may still hold a LoRA
            continue
        try:
            if is_link(path):
                raise ValueError("it is a link")
            return _read(path, run, last_step)
        except Exception as error:  # a damaged file makes torch raise any error, and an earlier state may be intact
            if skipped is not None:
                skipped(path, first_line(error))
    return None, None


def require_undamaged_state(path: Path, run: str, last_step: int | None = None) -> int:
    """The step of the state in the folder ``path``. Raises ValueError or OSError with the reason if it cannot be used, as in ``newest``."""
    step = _number(path)
    try:
        record = read_sealed(path / _RECORD, without=_OLD_RECORD)
    except (OSError, ValueError) as error:
        raise ValueError(f"its {_RECORD} cannot be trusted: {error}") from error
    if record.get("step") != step:
        raise ValueError(f"its {_RECORD} is of step {record.get('step')}")
    if last_step is not None and step > last_step:
        raise ValueError(f"the run ends at step {last_step}")
    if run and record.get("run", run) != run:
        raise ValueError("it belongs to another run")
    if sha256_file(path / _STATE) != record.get("sha256"):
        raise ValueError(f"its {_STATE} does not match its checksum")
    return step


def adopt(path: Path, folder: Path, *, run: str) -> Saved:
    """Take over the state in ``path``, which must be undamaged, into ``folder`` as a state of ``run``; its file is shared, not copied."""
    step = _number(path)
    final = state_folder(folder, step)
    partial = folder / f"{PARTIAL}{step:06d}-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        link_or_copy(path / _STATE, partial / _STATE)
        record = read_sealed(path / _RECORD, without=_OLD_RECORD)
        write_sealed(partial / _RECORD, {"step": step, "run": run, "sha256": record["sha256"]})
        if final.exists():  # with a LoRA
            for name in STATE_FILES:
                replace(partial / name, final / name)
        else:
            replace(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Saved(final, step)


def _read(path: Path, run: str, last_step: int | None) -> tuple[Saved, dict[str, Any]]:
    """The state in a folder. Raises ValueError, or an error of torch, with the reason if it cannot be used."""
    import torch

    step = require_undamaged_state(path, run, last_step)
    values = torch.load(path / _STATE, map_location="cpu", weights_only=True)
    if not isinstance(values, dict):
        raise ValueError(f"its {_STATE} holds no state")
    schedule = values.get("schedule")
    scheduled = schedule.get("last_epoch") if isinstance(schedule, dict) else None
    if isinstance(scheduled, int) and scheduled != step:  # also for records without a checksum
        raise ValueError(f"its learning-rate schedule is at step {scheduled}")
    return Saved(path, step), values


def newest_step(folder: Path) -> int:
    """The step of the newest state, without reading it; 0 if there is none."""
    return max(saved_steps(folder), default=0)


def saved_steps(folder: Path) -> list[int]:
    """The steps of all states, without reading them."""
    return [_number(path) for path in state_folders(folder) if (path / _STATE).exists()]


def delete_old(folder: Path, keep: int) -> None:
    """Delete all but the ``keep`` newest states (0 keeps all). The LoRA files beside them stay."""
    states = [path / _STATE for path in state_folders(folder) if (path / _STATE).exists()]
    for path in sorted(states, key=lambda path: _number(path.parent), reverse=True)[keep:] if keep else []:
        with suppress(OSError):  # a file that another program has open can stay for now
            path.with_name(_RECORD).unlink(missing_ok=True)
            path.unlink()
            path.parent.rmdir()  # only possible if no LoRA is in it


def _number(path: Path) -> int:
    digits = path.name.removeprefix("step-")
    return int(digits) if digits.isdecimal() and digits.isascii() else -1
