"""Deleting what finished runs no longer need from a folder of runs, without losing a result:

- states to resume from (``checkpoints/*/state.pt``) of runs that are finished and undamaged; their LoRA files stay;
- cached latents and prompts older than some days, which the next run that needs them encodes again.

Everything else stays: LoRA files, images, logs, unfinished runs, and runs in training. The same is done after each run with what is older
than ``output.prune_days``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ..core.errors import UserError
from ..core.messages import Message, Setting
from .run_folder import RunFolder
from .states import STATE_FILES, state_folders

_DAY = 86_400


@dataclass(frozen=True)
class Pruned:
    """What was deleted, or would be: numbers of files, and their bytes."""

    states: int
    cached: int
    bytes: int


def prune(runs: Path, *, days: float, dry_run: bool, finished_days: float = 0) -> Pruned:
    """Prune the folder ``runs``: cache files older than ``days``, and states of runs that finished ``finished_days`` ago or earlier.

    ``dry_run``: delete nothing. Raises UserError if ``runs`` holds no runs.
    """
    if not runs.is_dir():
        raise UserError(
            f"The folder {runs} does not exist.",
            Message("Choose the folder that holds the run folders: ", Setting("output.runs"), "."),
            kind="path",
        )
    folders = [path for path in sorted(runs.iterdir()) if (path / "events.jsonl").is_file() and not path.is_symlink()]
    cache = runs / "_cache"
    if not folders and not cache.is_dir():
        raise UserError(
            f"The folder {runs} holds no runs.",
            Message("Choose the folder that holds the run folders: ", Setting("output.runs"), "."),
            kind="path",
        )
    states, size = 0, 0
    for folder in folders:
        with _spare_states(folder, finished_days) as files:
            states += sum(file.suffix == ".pt" for file in files)
            size += _delete(files, dry_run)
    cached = [file for file in _cached(cache) if _is_older(file, days)]
    return Pruned(states, len(cached), size + _delete(cached, dry_run))


def _delete(files: list[Path], dry_run: bool) -> int:
    """Delete ``files`` unless it is a ``dry_run``; the bytes they take."""
    size = 0
    for file in files:
        with suppress(FileNotFoundError):  # another process may be pruning, too
            size += file.stat().st_size
            if not dry_run:
                file.unlink()
    return size


def _is_older(file: Path, days: float) -> bool:
    try:
        return time.time() - file.stat().st_mtime > days * _DAY
    except FileNotFoundError:  # another process may be pruning, too
        return False


@contextmanager
def _spare_states(folder: Path, finished_days: float) -> Iterator[list[Path]]:
    """The state files of a run that finished so many days ago. Inside the block nobody can train it; empty if somebody does."""
    states = [path / name for name in STATE_FILES for path in state_folders(folder / "checkpoints") if (path / name).is_file()]
    lora = next((file for file in folder.glob("*.safetensors")), None)
    if (
        not states
        or lora is None
        or (finished_days and not _is_older(folder / "result.json", finished_days))  # before the LoRA is hashed
        or RunFolder(folder, lora.stem).finished() is None
    ):
        yield []
        return
    with ExitStack() as held:
        try:
            held.enter_context(FileLock(str(RunFolder(folder, lora.stem).parent_lock), timeout=0))
        except Timeout:
            states = []
        yield states


def _cached(cache: Path) -> Iterator[Path]:
    for kind in ("latents", "prompts"):
        if not (cache / kind).is_symlink():
            yield from (path for path in (cache / kind).glob("??/*.safetensors") if path.is_file() and not path.is_symlink())
