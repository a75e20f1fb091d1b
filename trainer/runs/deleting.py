"""Deleting a run, or what it saved at one step. Links are removed, never followed, and a run in training is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ..core.errors import UserError
from ..core.files.reading import is_link
from .publish import published_at
from .run_folder import RunFolder
from .run_list import file_sizes, is_own_file, run_folders, run_in, saved_at
from .states import STATE_FILES, state_folder


@dataclass(frozen=True)
class Deleted:
    """What was deleted: saved steps, validation images, and bytes of all files; ``published`` is the LoRA outside the run folder."""

    states: int
    images: int
    bytes: int
    published: Path | None = None


def own_run(root: Path, name: str) -> RunFolder:
    """The run in the folder ``name`` directly below ``root``. Raises UserError if there is none, or a link in its place."""
    for folder in run_folders(root):
        if folder.name == name:
            return run_in(folder)
    raise UserError(f"There is no run {name!r}.", "", kind="path")


def delete_run(run: RunFolder, publish_folder: str = "") -> Deleted:
    """Delete the folder of ``run``, and with ``publish_folder`` also its LoRA there.

    What makes the folder a run goes last, so that a deletion that fails can be repeated. Raises UserError if the run is being trained, and
    OSError if a file cannot be deleted.
    """
    with nobody_trains(run):
        published = published_lora(run, publish_folder)
        images = 0 if is_link(run.samples) else sum(is_own_file(path) for path in run.samples.glob("*.png"))
        sizes = [size for size, _ in file_sizes(run.path)]
        if published is not None:
            sizes.append(published.stat().st_size)
        deleted = Deleted(len(saved_at(run)), images, sum(sizes), published)
        last = [run.config, run.events]
        locks = [run.parent_lock, run.child_lock]
        for path in [run.result, *(each for each in run.path.iterdir() if each not in [run.result, *last, *locks])]:
            _remove(path)
        if published is not None:
            published.unlink(missing_ok=True)
        for path in last:
            _remove(path)
    for path in locks:
        path.unlink(missing_ok=True)
    with suppress(OSError):  # somebody has started the run again
        run.path.rmdir()
    return deleted


def delete_step(run: RunFolder, step: int) -> Deleted:
    """Delete the state and the LoRA that ``run`` saved after ``step``. Its validation images stay.

    Raises UserError if nothing was saved there or the run is being trained, and OSError if a file cannot be deleted.
    """
    folder = state_folder(run.checkpoints, step)
    with nobody_trains(run):
        if step not in saved_at(run):
            raise UserError(f"Nothing is saved at step {step}.", "", kind="path")
        deleted = Deleted(1, 0, sum(size for size, _ in file_sizes(folder)))
        for name in reversed(STATE_FILES):  # the record first: a state without it is not used
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder)
    return deleted


def published_lora(run: RunFolder, folder: str) -> Path | None:
    """The finished LoRA of ``run`` in ``folder``, to which it was published; None if there is none, or a link in its place."""
    found = published_at(run, folder)
    return found if found is not None and is_own_file(found) else None


@contextmanager
def nobody_trains(run: RunFolder) -> Iterator[None]:
    """Inside the block nobody can train ``run``. Raises UserError if somebody does, in this process or another."""
    with ExitStack() as held:
        for path in (run.parent_lock, run.child_lock):
            if is_link(path):
                raise UserError(f"{path} is a link, not a lock file.", "Remove it, and try again.", kind="path")
            try:
                held.enter_context(FileLock(str(path), timeout=0))
            except Timeout as error:
                raise being_trained() from error
        yield


def being_trained() -> UserError:
    """The error for a run that cannot be deleted now."""
    return UserError("This run is being trained.", "Stop the training, or wait until it ends.", kind="busy")


def _remove(path: Path) -> None:
    """Delete a file, a link or a folder with all it holds. What links point to stays."""
    if path.is_dir() and not is_link(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
