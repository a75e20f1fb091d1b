"""What may be deleted below a folder of runs, by a rule that never costs a result:

- states to resume from (``checkpoints/*/state.pt``) of runs that are finished and whole; their LoRA files stay;
- cached latents and prompts older than some days, which the next run that needs them encodes anew.

Everything else stays: LoRA files, pictures, logs, unfinished runs, and any run that is being trained. The same rule is applied after each
run to what is older than ``output.prune_days``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import UserError
from .resume import STATE_FILES
from .runs import RunFolder

_DAY = 86_400


@dataclass(frozen=True)
class Pruned:
    """What was deleted, or would be: counts and bytes."""

    states: int
    cached: int
    bytes: int


def prune(runs: Path, *, days: float, dry_run: bool, finished_days: float = 0) -> Pruned:
    """Apply the rule below ``runs``. ``days``: how old a cache file must be, ``finished_days`` how long ago a run must have finished.

    Raises UserError when ``runs`` holds no runs.
    """
    if not runs.is_dir():
        raise UserError(f"The folder {runs} does not exist.", "Give the folder that holds the run folders (output.runs).", kind="path")
    folders = [path for path in sorted(runs.iterdir()) if (path / "events.jsonl").is_file() and not path.is_symlink()]
    cache = runs / "_cache"
    if not folders and not cache.is_dir():
        raise UserError(f"The folder {runs} holds no runs.", "Give the folder that holds the run folders (output.runs).", kind="path")
    states = [file for folder in folders for file in _states(folder, finished_days)]
    cached = [file for file in _cached(cache) if _is_older(file, days)]
    size = sum(file.stat().st_size for file in (*states, *cached))
    if not dry_run:
        for file in (*states, *cached):
            file.unlink(missing_ok=True)
    return Pruned(sum(file.suffix == ".pt" for file in states), len(cached), size)


def _is_older(file: Path, days: float) -> bool:
    try:
        return time.time() - file.stat().st_mtime > days * _DAY
    except FileNotFoundError:  # another process prunes, too
        return False


def _states(folder: Path, finished_days: float) -> Iterator[Path]:
    """The state files of a run that finished so many days ago and that nobody is training."""
    states = [path for name in STATE_FILES for path in folder.glob(f"checkpoints/step-*/{name}") if path.is_file()]
    if not states or (finished_days and not _is_older(folder / "result.json", finished_days)):
        return  # before the LoRA is hashed
    lora = next((file for file in folder.glob("*.safetensors")), None)
    if lora is None or RunFolder(folder, lora.stem).finished(None) is None:
        return
    lock = FileLock(str(folder / ".lock"))
    try:
        with lock.acquire(timeout=0):
            yield from states
    except Timeout:
        return


def _cached(cache: Path) -> Iterator[Path]:
    for kind in ("latents", "prompts"):
        if not (cache / kind).is_symlink():
            yield from (path for path in (cache / kind).glob("??/*.safetensors") if path.is_file() and not path.is_symlink())
