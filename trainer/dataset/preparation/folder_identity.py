"""Which folder a preparation has: the same source with the same settings finds its folder again, any other one gets a folder of its own.

The first preparation of a name is ``<trigger>_<class>``, every further one ``<trigger>_<class>-<8 hex digits>``. What a folder was made
from is recorded in its ``.prepare/preparation.json``. Folders without that record (earlier versions wrote none) are recognised by their
settings and their images, and so are folders whose source was moved.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...core.errors import UserError
from ...core.files.paths import require_short_path
from ...core.files.writing import write_atomic
from ..layout import FOLDERS, HEADER, JOURNAL, MASKS, REGULARISATION, ROWS, WORK, caption_file
from ..manifest.read import read_header
from ..settings import PrepareSettings, dataset_folder
from .journal import locked
from .tidy import remove_partials

RECORD = "preparation.json"  # in WORK
WRITTEN, TAGS = "captions.jsonl", "tags.json"  # in WORK: see previous_run.py and tagger.py
_BATCH = "images:"  # in front of the content hash that stands for an IMAGE batch


@dataclass(frozen=True)
class Preparation:
    """``source`` and ``regularisation``: what ``place_of`` or ``batch`` says. ``contents``: SHA-256 of every source file."""

    settings: PrepareSettings
    source: str
    regularisation: str = ""
    contents: frozenset[str] = frozenset()

    @cached_property
    def identity(self) -> str:
        """64 hex digits. Settings with their default value are left out, so that a setting that is added later changes nothing."""
        settings = self.settings.model_dump(mode="json", exclude_defaults=True)
        return hashlib.sha256(json.dumps([self.source, self.regularisation, settings], sort_keys=True).encode()).hexdigest()

    def owns(self, folder: Path) -> bool:
        """Whether ``folder`` was prepared from this source with these settings."""
        record = _record(folder)
        if record is None:
            return _settings(_header(folder).get("settings")) == self.settings and self._shares_images(folder)
        return _settings(record.get("settings")) == self.settings and self._same_source(record, folder)

    def is_related(self, folder: Path) -> bool:
        """Whether ``folder`` was prepared from this source for the same trigger word and class, with whatever other settings."""
        record = _record(folder)
        before = _settings((_header(folder) if record is None else record).get("settings"))
        if before is None or (before.trigger, before.class_description) != (self.settings.trigger, self.settings.class_description):
            return False
        if record is None or (self.source.startswith(_BATCH) and str(record.get("source", "")).startswith(_BATCH)):
            return self._shares_images(folder)
        return self._same_source(record, folder)

    def differences(self, folder: Path) -> str:
        """In words, what ``folder`` was prepared from, where that differs."""
        record = _record(folder) or {}
        source = str(record.get("source", ""))
        if source and source != self.source:
            return "an IMAGE batch" if source.startswith(_BATCH) else source
        before = _settings(record.get("settings", _header(folder).get("settings")))
        if before is None:
            return "something else"
        old, new = (dict(_flat(settings.model_dump(mode="json"))) for settings in (before, self.settings))
        changed = [f"{key} = {json.dumps(old.get(key))}" for key in old.keys() | new.keys() if old.get(key) != new.get(key)]
        return f"the same source with {', '.join(sorted(changed)[:4])}" if changed else "other regularisation images"

    def claim(self, folder: Path) -> None:
        """Record that ``folder`` belongs to this preparation."""
        record = {"source": self.source, "regularisation": self.regularisation, "settings": self.settings.model_dump(mode="json")}
        if _record(folder) != record:
            write_atomic(folder / WORK / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")

    def _same_source(self, record: dict[str, Any], folder: Path) -> bool:
        pairs = [(str(record.get(name, "")), mine) for name, mine in (("source", self.source), ("regularisation", self.regularisation))]
        if all(old == new for old, new in pairs):
            return True
        return all(old == new or _was_moved(old, new) for old, new in pairs) and self._shares_images(folder)

    def _shares_images(self, folder: Path) -> bool:
        """Whether at least half of the images that were prepared there are in this source, too."""
        before = _source_hashes(folder)
        return bool(before) and 2 * len(before & self.contents) >= len(before)


def place_of(path: Path) -> str:
    """The name of a folder, archive or file as a source: its real path."""
    return os.path.normcase(path.resolve())


def batch(hashes: list[str]) -> str:
    """The name of an IMAGE batch as a source: a hash of its images, names and captions."""
    return _BATCH + hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def siblings(out_root: Path, settings: PrepareSettings) -> list[Path]:
    """The folders of all preparations with the name that ``settings`` give, the one without a number first."""
    base = dataset_folder(out_root, settings)
    numbered = sorted(Path(path) for path in glob.glob(f"{glob.escape(str(base))}-*"))
    return [path for path in (base, *numbered) if path.is_dir()]


def _choose_folder(out_root: Path, mine: Preparation) -> Path:
    """The folder that belongs to ``mine``; it may not be there yet."""
    for folder in siblings(out_root, mine.settings):
        if mine.owns(folder):
            return folder
    base = dataset_folder(out_root, mine.settings)
    candidates = [base, *(base.with_name(f"{base.name}-{mine.identity[:digits]}") for digits in range(8, 65, 8))]
    return next(folder for folder in candidates if _is_free(folder))


@contextmanager
def own_folder(
    out_root: Path, source: object, mine: Preparation, should_stop: Callable[[], bool], waiting: Callable[[], None], *, replace_other: bool
) -> Iterator[tuple[Path, list[str]]]:
    """The folder of ``mine``, locked, and what is to be said about it. ``replace_other``: the one without a number, whoever has it.

    Raises UserError when the folder cannot be made, or is ``source`` itself.
    """
    base = dataset_folder(out_root, mine.settings)
    while True:
        folder = base if replace_other else _choose_folder(out_root, mine)
        _make_folder(folder, source)
        with locked(folder, should_stop, waiting):
            if not replace_other and _choose_folder(out_root, mine) != folder:
                continue  # another process took it in the meantime
            try:
                yield folder, _begin(folder, out_root, mine)
            except UserError:
                _remove_empty(folder)
                raise
            return


def _remove_empty(folder: Path) -> None:
    """Remove the folder of a preparation that failed before it made anything; only our notes are in it then."""
    work = folder / WORK
    if [path for path in folder.iterdir() if path != work] or [path for path in work.glob("*") if path.is_dir() and any(path.iterdir())]:
        return
    shutil.rmtree(folder, ignore_errors=True)


def _make_folder(folder: Path, source: object) -> None:
    with can_be_made(folder):
        if isinstance(source, Path) and source.resolve() == folder.resolve():
            message = f"{source} is the folder that the dataset would be written to."
            raise UserError(message, "Choose another output folder or trigger word.", kind="dataset")
        require_short_path(folder / REGULARISATION / f"{'x' * 71}.png")  # the longest name that a Job gives
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def can_be_made(folder: Path) -> Iterator[None]:
    """Raises UserError for a name that the system refuses, and where it may not be written."""
    try:
        yield
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise UserError(f"The folder {folder} cannot be made: {cause}.", "Choose another place.", kind="dataset") from error


def _begin(folder: Path, out_root: Path, mine: Preparation) -> list[str]:
    """Tidy up, claim the folder, and start it from an earlier dataset of the same source; returns warnings."""
    remove_partials(folder)
    base, warnings = dataset_folder(out_root, mine.settings), []
    if folder != base and not (folder / WORK / RECORD).exists():
        warnings.append(f"{base.name} holds another dataset ({mine.differences(base)}). This one is in {folder}.")
    origin = _origin_for(folder, out_root, mine)
    mine.claim(folder)
    if origin is not None:
        _start_from(origin, folder)
        warnings.append(f"This dataset is new. Finished images and captions edited by hand were taken over from {origin.name}.")
    return warnings


def _origin_for(folder: Path, out_root: Path, mine: Preparation) -> Path | None:
    """For a new ``folder``: the newest finished preparation of the same source, whose images and hand edits it starts with."""
    if not _is_free(folder):
        return None
    related = [path for path in siblings(out_root, mine.settings) if path != folder and _header(path) and mine.is_related(path)]
    return max(related, key=lambda path: (path / HEADER).stat().st_mtime_ns, default=None)


def _start_from(origin: Path, folder: Path) -> None:
    """Give ``folder`` what was prepared in ``origin``. The prepared images are linked, where the file system can do that.

    The journal comes last: until then the folder counts as new, and a killed process leaves nothing that is taken for a finished one.
    """
    for name in (f"{WORK}/{WRITTEN}", f"{WORK}/{TAGS}", ROWS):
        _copy(origin / name, folder / name)
    ours = _file_names(origin)
    for below in FOLDERS:
        for path in sorted((origin / below).glob("*")):
            if path.name in ours:
                _copy(path, folder / below / path.name, link=path.suffix == ".png" and not below.startswith(MASKS))
    _copy(origin / WORK / JOURNAL, folder / WORK / JOURNAL)


def _copy(source: Path, target: Path, *, link: bool = False) -> None:
    if target.exists() or not source.is_file() or source.is_symlink():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        try:
            os.link(source, target)
            return
        except OSError:  # another disk, or a file system without links
            pass
    shutil.copyfile(source, target)


def _is_free(folder: Path) -> bool:
    """Whether nothing was prepared there: no manifest, and no image in the journal of a run that was stopped."""
    if (folder / HEADER).exists():
        return False
    return not any(row.get("file") for row in _lines(folder / WORK / JOURNAL))


def _was_moved(old: str, new: str) -> bool:
    return bool(old and new) and not old.startswith(_BATCH) and not new.startswith(_BATCH) and not os.path.exists(old)


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        data = json.loads((folder / WORK / RECORD).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _header(folder: Path) -> dict[str, Any]:
    try:
        return read_header(folder)
    except UserError:
        return {}


def _settings(data: Any) -> PrepareSettings | None:
    """None for what this version does not understand."""
    try:
        return PrepareSettings.model_validate(data)
    except ValidationError:
        return None


def _source_hashes(folder: Path) -> set[str]:
    """SHA-256 of the sources of the images that lie in ``folder``."""
    return {str(row.get("source_sha256", "")) for row in _lines(folder / ROWS)} - {""}


def _file_names(folder: Path) -> set[str]:
    """Names of the images, masks and captions that this program wrote there."""
    rows = (row for name in (ROWS, f"{WORK}/{JOURNAL}") for row in _lines(folder / name))
    images = {str(row[key]).rsplit("/", 1)[-1] for row in rows for key in ("file", "mask") if row.get(key)}
    return images | {caption_file(name) for name in images}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in a file of JSON lines; what is none is passed over."""
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                with suppress(ValueError, RecursionError):
                    row = json.loads(line)
                    if isinstance(row, dict):
                        yield row
    except OSError:
        return


def _flat(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
