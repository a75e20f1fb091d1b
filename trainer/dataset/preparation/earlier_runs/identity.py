"""What a preparation is made from, and whether a folder was made from the same: source, settings and images.

A folder records it in ``.prepare/preparation.json``. Folders without that record (earlier versions wrote none), and folders whose
source was moved, are recognised by their settings and their images.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ....config.prepare_settings import PrepareSettings
from ....core.errors import UserError
from ....core.files.reading import read_regular
from ....core.files.writing import write_atomic
from ...layout import ROWS, WORK
from ...manifest.open_dataset import read_manifest_header
from .earlier_rows import lines_of

RECORD = "preparation.json"  # in WORK
_BATCH = "images:"  # prefix of the content hash that stands for an IMAGE batch
_MAX_DIFFERENCES = 4  # in a message
_LARGEST_RECORD = 1 << 20  # bytes


@dataclass(frozen=True)
class PreparationIdentity:
    """``source`` and ``regularisation``: see ``path_id`` and ``batch_id``. ``contents``: SHA-256 of every source file."""

    settings: PrepareSettings
    source: str
    regularisation: str = ""
    contents: frozenset[str] = frozenset()

    @cached_property
    def digest(self) -> str:
        """64 hex digits. Settings at their default are left out, so that a setting that is added later changes nothing."""
        settings = self.settings.model_dump(mode="json", exclude_defaults=True)
        return hashlib.sha256(json.dumps([self.source, self.regularisation, settings], sort_keys=True).encode()).hexdigest()

    def owns(self, folder: Path) -> bool:
        """Whether ``folder`` was prepared from this source with these settings."""
        record = _record(folder)
        if record is None:
            return _settings(header_or_empty(folder).get("settings")) == self.settings and self._shares_images(folder)
        return _settings(record.get("settings")) == self.settings and self._same_source(record, folder)

    def is_related(self, folder: Path) -> bool:
        """Whether ``folder`` was prepared from this source for the same trigger word and class, with whatever other settings."""
        record = _record(folder)
        before = _settings((header_or_empty(folder) if record is None else record).get("settings"))
        if before is None or (before.trigger, before.class_description) != (self.settings.trigger, self.settings.class_description):
            return False
        if record is None or (self.source.startswith(_BATCH) and str(record.get("source", "")).startswith(_BATCH)):
            return self._shares_images(folder)
        return self._same_source(record, folder)

    def differences(self, folder: Path) -> str:
        """What ``folder`` was prepared from, for a message: its source where that differs, else the settings that differ."""
        record = _record(folder) or {}
        source = str(record.get("source", ""))
        if source and source != self.source:
            return "an IMAGE batch" if source.startswith(_BATCH) else source
        before = _settings(record.get("settings", header_or_empty(folder).get("settings")))
        if before is None:
            return "something else"
        old, new = (dict(_flat(settings.model_dump(mode="json"))) for settings in (before, self.settings))
        changed = [f"{key} = {json.dumps(old.get(key))}" for key in old.keys() | new.keys() if old.get(key) != new.get(key)]
        return f"the same source with {', '.join(sorted(changed)[:_MAX_DIFFERENCES])}" if changed else "other regularisation images"

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
        """Whether this source has at least half of the images that were prepared in ``folder``."""
        before = {str(row.get("source_sha256", "")) for row in json_lines(folder / ROWS)} - {""}
        return bool(before) and 2 * len(before & self.contents) >= len(before)


def path_id(path: Path) -> str:
    """The identity of a folder, archive or file as a source: its real path."""
    return os.path.normcase(path.resolve())


def batch_id(texts: Sequence[str]) -> str:
    """The identity of an IMAGE batch as a source: a hash of the names, content hashes and captions of its images."""
    return _BATCH + hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def header_or_empty(folder: Path) -> dict[str, Any]:
    """The manifest's header; empty where there is none that this version reads."""
    try:
        return read_manifest_header(folder)
    except UserError:
        return {}


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in a file of JSON lines; other lines are skipped."""
    for line in lines_of(path):
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict):
                yield row


def _was_moved(old: str, new: str) -> bool:
    return bool(old and new) and not old.startswith(_BATCH) and not new.startswith(_BATCH) and not os.path.exists(old)


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(read_regular(folder / WORK / RECORD, _LARGEST_RECORD))
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _settings(data: Any) -> PrepareSettings | None:
    """None for settings that are not valid in this version."""
    try:
        return PrepareSettings.model_validate(data)
    except ValidationError:
        return None


def _flat(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
