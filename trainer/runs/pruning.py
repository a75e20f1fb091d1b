"""What may be deleted below a folder of runs, by a rule that never costs a result:

- states to resume from (``checkpoints/*/state.pt``) of runs that are finished and whole; their LoRA files stay;
- cached latents and prompts older than some days, which the next run that needs them encodes anew.

Everything else stays: LoRA files, pictures, logs, unfinished runs, and any run that is being trained. The same rule is applied after each
run to what is older than ``output.prune_days``.
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
    """What was deleted, or would be: counts and bytes."""

    states: int
    cached: int
    bytes: int


def prune(runs: Path, *, days: float, dry_run: bool, finished_days: float = 0) -> Pruned:
    """Apply the rule below ``runs``. ``days``: how old a cache file must be, ``finished_days`` how long ago a run must have finished.

    Raises UserError when ``runs`` holds no runs.
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
    """Their bytes."""
    size = 0
    for file in files:
        with suppress(FileNotFoundError):  # another process prunes, too
            size += file.stat().st_size
            if not dry_run:
                file.unlink()
    return size


def _is_older(file: Path, days: float) -> bool:
    try:
        return time.time() - file.stat().st_mtime > days * _DAY
    except FileNotFoundError:  # another process prunes, too
        return False


@contextmanager
def _spare_states(folder: Path, finished_days: float) -> Iterator[list[Path]]:
    """The state files of a run that finished so many days ago and that nobody is training, nor can begin to inside the block."""
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
            held.enter_context(FileLock(str(folder / ".lock"), timeout=0))
        except Timeout:
            states = []
        yield states


def _cached(cache: Path) -> Iterator[Path]:
    for kind in ("latents", "prompts"):
        if not (cache / kind).is_symlink():
            yield from (path for path in (cache / kind).glob("??/*.safetensors") if path.is_file() and not path.is_symlink())
