"""The runs below a folder, each described by its small files and the two ends of its log, so that hundreds are listed at once."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..core.files.locks import is_locked
from ..core.files.reading import is_link
from ..core.files.sealed_json import read_sealed
from . import events
from .event_log import read_ends
from .run_folder import OLD_RESULT, RunFolder
from .states import saved_steps, state_folders

State = Literal["finished", "running", "failed", "stopped"]
_MAX_CONFIG = 1 << 20  # bytes


@dataclass(frozen=True)
class ListedRun:
    """One run. Numbers that are unknown are 0; ``loss`` is the smoothed loss of the last step, None if unknown or not finite."""

    folder: Path
    name: str  # of the LoRA
    base: str  # file name of the base checkpoint
    state: State
    started: float  # seconds since 1970
    step: int  # the last one that was trained
    steps: int  # planned
    epochs: int  # planned; 0 if the run does not end with an epoch
    loss: float | None
    image: Path | None  # the last validation image of the first prompt
    states: tuple[int, ...]  # the steps with a state to resume from
    loras: tuple[int, ...]  # those with a saved LoRA
    images: int
    files: tuple[tuple[int, tuple[int, int]], ...]  # as from ``file_sizes``

    @property
    def saved(self) -> tuple[int, ...]:
        """The steps with a saved state, a saved LoRA, or both."""
        return tuple(sorted({*self.states, *self.loras}))

    @property
    def bytes(self) -> int:
        """What its files take on the disk."""
        return sum(size for size, _ in self.files)


class RunList:
    """Lists the runs below a folder. Remembers each until one of its files changes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[Path, tuple[Any, ListedRun]] = {}

    def all(self) -> list[ListedRun]:
        """The runs, the one that started last first."""
        listed = {folder: self._listed(folder) for folder in run_folders(self.root)}
        self._known = {folder: entry for folder, entry in listed.items() if entry[1].state != "running"}  # its lock changes no file
        return sorted((run for _, run in listed.values()), key=lambda run: (run.started, run.folder.name), reverse=True)

    def _listed(self, folder: Path) -> tuple[Any, ListedRun]:
        stamp = _stamp(folder)
        known = self._known.get(folder)
        return known if known is not None and known[0] == stamp else (stamp, describe(folder))


def run_folders(root: Path) -> list[Path]:
    """The folders below ``root`` that have an event log of their own. Links are not followed."""
    try:
        folders = [path for path in root.iterdir() if not is_link(path)]
    except OSError:
        return []
    return [path for path in folders if not path.name.startswith(("_", ".")) and is_own_file(path / "events.jsonl")]


def is_own_file(path: Path) -> bool:
    """Whether ``path`` is a regular file and no link."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def run_in(folder: Path) -> RunFolder:
    """The run in ``folder``, with the name in its configuration; with that of the folder if the configuration is damaged."""
    name = RunFolder(folder, "").read_config(_MAX_CONFIG).get("name")
    return RunFolder(folder, str(name or folder.name.rpartition("-")[0] or folder.name))


def describe(folder: Path) -> ListedRun:
    """The run in ``folder``, which has an event log. What is damaged counts as unknown."""
    run = run_in(folder)
    config = run.read_config(_MAX_CONFIG)
    first, last, step = _ends(run)
    result = _sealed(run.result)
    plan = _sealed(run.lineage)
    steps = _whole(plan.get("steps")) or (step.steps if step is not None else 0) or _whole(result.get("steps"))
    per_epoch = _whole(plan.get("steps_per_epoch"))
    images = _images(run)
    return ListedRun(
        folder=folder,
        name=run.name,
        base=_file_name(_table(config, "base").get("checkpoint")),
        state=_state(run, last, finished=bool(result)),
        started=first.time if first is not None else folder.stat().st_mtime,
        step=_whole(result.get("steps")) or (step.step if step is not None else 0),
        steps=steps,
        epochs=steps // per_epoch if per_epoch and steps % per_epoch == 0 else 0,
        loss=_finite(step.loss_average if step is not None else result.get("loss")),
        image=max((each for each in images if each.stem.endswith("-00")), key=_place, default=None),
        states=tuple(_with_state(run)),
        loras=tuple(_with_lora(run)),
        images=len(images),
        files=tuple(file_sizes(folder)),
    )


def saved_at(run: RunFolder) -> list[int]:
    """The steps with a saved state, a saved LoRA, or both."""
    return sorted({*_with_state(run), *_with_lora(run)})


def _with_state(run: RunFolder) -> list[int]:
    """The steps with a saved state."""
    return [] if is_link(run.checkpoints) else sorted(step for step in saved_steps(run.checkpoints) if step >= 0)


def _with_lora(run: RunFolder) -> list[int]:
    """The steps with a saved LoRA."""
    if is_link(run.checkpoints):
        return []
    numbers = [path.name.removeprefix("step-") for path in state_folders(run.checkpoints) if any(path.glob("*.safetensors"))]
    return sorted(int(number) for number in numbers if number.isdecimal())


def file_sizes(folder: Path) -> Iterator[tuple[int, tuple[int, int]]]:
    """Size in bytes and identity of each file in ``folder``. Links are not followed. A file with two names has one identity."""
    folders = [str(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False) and not is_link(Path(entry.path)):
                        folders.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        status = os.lstat(entry.path)
                        yield status.st_size, (status.st_dev, status.st_ino)
        except OSError:  # deleted in the meantime
            continue


def disk_size(runs: Iterable[ListedRun]) -> int:
    """The bytes that the files of ``runs`` take together; a file that several runs share counts once."""
    return sum({identity: size for run in runs for size, identity in run.files}.values())


def _stamp(folder: Path) -> tuple[Any, ...]:
    """Changes when a file of the run is written, added or deleted."""
    checkpoints = folder / "checkpoints"
    places = [folder, folder / "events.jsonl", folder / "config.json", folder / "samples", checkpoints, *state_folders(checkpoints)]
    return tuple((str(path), _changed_at(path)) for path in places)


def _changed_at(path: Path) -> int:
    try:
        return path.lstat().st_mtime_ns
    except OSError:
        return 0


def _ends(run: RunFolder) -> tuple[events.Event | None, events.Event | None, events.Step | None]:
    """The first event, the last one, and the last step near the end of the log."""
    first, lines = read_ends(run.events)
    last: events.Event | None = None
    for line in reversed(lines):
        event = events.decode_event(line)
        last = last or event
        if isinstance(event, events.Step):
            return first, last, event
    return first, last, None


def _state(run: RunFolder, last: events.Event | None, *, finished: bool) -> State:
    """A run whose log ends is not locked for long: only others are asked whether somebody trains them."""
    if finished and isinstance(last, events.Done):
        return "finished"
    if not isinstance(last, events.Done | events.Stopped | events.Error) and (is_locked(run.parent_lock) or is_locked(run.child_lock)):
        return "running"
    if finished:
        return "finished"
    return "failed" if isinstance(last, events.Error) else "stopped"


def _images(run: RunFolder) -> list[Path]:
    if is_link(run.samples):
        return []
    return [path for path in run.samples.glob("*.png") if not path.name.startswith(".") and is_own_file(path)]


def _place(image: Path) -> tuple[bool, int, str]:
    """Orders validation images: those of epochs by their number, after those that were asked for at a step."""
    return image.name.startswith("epoch-"), len(image.name), image.name


def _sealed(path: Path) -> dict[str, Any]:
    """A record with a checksum; empty if it is missing or damaged."""
    try:
        return read_sealed(path, without=OLD_RESULT)
    except (OSError, ValueError):
        return {}


def _table(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = config.get(name)
    return table if isinstance(table, dict) else {}


def _file_name(path: object) -> str:
    return str(path or "").replace("\\", "/").rstrip("/").rpartition("/")[2]


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _finite(value: object) -> float | None:
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    return number if number is not None and abs(number) < float("inf") else None
