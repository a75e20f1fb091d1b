"""Tables with the captions of many images: Hugging Face's metadata.jsonl and metadata.csv, captions.json(l), kohya's metadata JSON."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...core.counting import plural
from ...core.files.reading import read_regular
from ..images.decode import EXTENSIONS
from .caption_text import one_line, tidy_lines
from .encodings import decode_text

MAX_METADATA_BYTES = 100 << 20  # captions of 200,000 images; parsed JSON may take 25 times as much memory
NAME_COLUMNS = ("file_name", "file", "image", "filename", "path", "image_path")
TEXT_COLUMNS = ("text", "caption", "captions", "prompt", "tags", "tag_string", "description", "additional_feature")
_TAG_COLUMNS = ("tags", "tag_string", "additional_feature")


def folded(path: Path | str) -> str:
    """A path for comparison, without differences of case and of composed or decomposed accents (names on macOS are decomposed)."""
    text = path if isinstance(path, str) else path.as_posix()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


class CaptionTables:
    """The captions of all tables below ``root``. ``lines``: keep the lines of a caption apart.

    ``problems``: messages about what could not be read. ``unknown``: files in which no captions were recognised.
    """

    def __init__(self, root: Path, *, lines: bool = False) -> None:
        self._root = root
        self._tidy = tidy_lines if lines else one_line
        self._rows: dict[str, tuple[str, bool]] = {}  # image path -> (text, whether it is tags)
        self._keyed: dict[str, tuple[str, bool]] = {}  # path without extension, as in kohya's files -> the same
        self._short: dict[str, tuple[str, bool] | None] = {}  # name without folder -> the same; None where it is ambiguous
        self._files: dict[str, str] = {}
        self._used: set[str] = set()
        self.problems: list[str] = []
        self.unknown: list[Path] = []

    def read(self, path: Path) -> None:
        """Add the captions of a ``.jsonl``, ``.csv`` or ``.json`` file."""
        named = path.name.lower() in ("metadata.jsonl", "metadata.csv")
        name = path.relative_to(self._root).as_posix()
        try:
            if path.suffix.lower() == ".json":
                recognised = self._read_json(path, json.loads(_text(path)))
            else:
                recognised = self._read_rows(path, list(_rows(path)), named)
        except (OSError, ValueError, csv.Error, RecursionError) as error:
            cause = getattr(error, "strerror", None) or error
            self.problems.append(f"{name} cannot be read: {cause}")
            return
        if not recognised:
            self.unknown.append(path)

    def find(self, image: Path) -> tuple[str, str, bool] | None:
        """(caption, origin, whether it is tags) of ``image``, or None."""
        key = folded(image)
        if key in self._rows:
            self._used.add(key)
            return self._rows[key][0], "metadata", self._rows[key][1]
        stem = folded(image.stem)
        entry = self._keyed.get(folded(image.relative_to(self._root).with_suffix(""))) or self._keyed.get(stem) or self._short.get(stem)
        return (entry[0], "kohya metadata", entry[1]) if entry else None

    def warnings(self) -> list[str]:
        """Problems and unused rows; call it after ``find`` for every image."""
        unused = [key for key in self._rows if key not in self._used]
        if not unused:
            return self.problems
        files = ", ".join(dict.fromkeys(self._files[key] for key in unused))
        verb = "was" if len(unused) == 1 else "were"
        rows = f"{plural(len(unused), 'row')} of {files} {verb} not used"
        return [*self.problems, f"{rows}: no image without another caption has that name."]

    def _read_rows(self, path: Path, rows: list[dict[str, Any]], named: bool) -> bool:
        """Whether captions were recognised. ``named``: captions are expected because of the file's name."""
        without_text = 0
        for row in rows:
            name = next((row[column] for column in NAME_COLUMNS if isinstance(row.get(column), str) and row[column]), None)
            text = self._text_of(row)
            if name is None or "\x00" in name or text is None:
                without_text += 1
            else:
                self._add(path, name, text)
        if without_text and (named or without_text < len(rows)):
            self.problems.append(
                f"{plural(without_text, 'row')} of {path.name} without a file_name or a caption column "
                f"(looked for {', '.join(TEXT_COLUMNS)})."
            )
        return bool(named or without_text < len(rows))

    def _add(self, path: Path, name: str, text: tuple[str, bool]) -> None:
        key = folded(path.parent / name.replace("\\", "/"))
        self._rows[key] = text
        self._files[key] = path.name

    def _read_json(self, path: Path, data: Any) -> bool:
        """Read kohya's ``meta_cap.json`` (image -> {"caption": …, "tags": …}), image -> caption, or a list of rows."""
        if isinstance(data, dict) and len(data) <= 4:  # {"images": [rows]}, {"data": [rows]}
            lists = [value for value in data.values() if isinstance(value, list) and value and all(isinstance(row, dict) for row in value)]
            data = lists[0] if len(lists) == 1 else data
        if isinstance(data, list):
            rows = [row for row in data if isinstance(row, dict)]
            return bool(rows) and self._read_rows(path, rows, False)
        if not isinstance(data, dict):
            return False
        recognised = False
        for key, value in data.items():
            text = self._text_of_entry(str(key), value)
            if text is None:
                continue
            recognised = True
            if isinstance(value, dict):
                self._add_key(str(key), text)
            else:
                self._add(path, str(key), text)
        return recognised

    def _add_key(self, key: str, text: tuple[str, bool]) -> None:
        name = folded(key.replace("\\", "/"))
        suffix = "." + name.rsplit(".", 1)[-1]
        stem = name.removesuffix(suffix) if suffix in EXTENSIONS else name
        self._keyed[stem.removeprefix(folded(self._root.resolve()) + "/")] = text
        short = stem.rsplit("/", 1)[-1]
        if short != stem:  # used only while it is unambiguous
            self._short[short] = None if short in self._short and self._short[short] != text else text

    def _text_of_entry(self, key: str, value: Any) -> tuple[str, bool] | None:
        if isinstance(value, dict):
            caption, tags = (self._tidy(text) if isinstance(text := value.get(part), str) else "" for part in ("caption", "tags"))
            if not caption and not tags:
                return None
            # sd-scripts appends the tags to each line of the caption (FineTuningDataset)
            lines = [f"{line}, {one_line(tags)}" if tags else line for line in caption.split("\n")] if caption else [one_line(tags)]
            return "\n".join(lines), not caption
        if "." + key.rsplit(".", 1)[-1].lower() not in EXTENSIONS:
            return None  # such as {"name": "…"}
        if isinstance(value, str) and value.strip():
            return self._tidy(value), False
        if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
            return one_line(", ".join(value)), True
        return None

    def _text_of(self, row: dict[str, Any]) -> tuple[str, bool] | None:
        for column in TEXT_COLUMNS:
            value = row.get(column)
            if isinstance(value, str) and value.strip():
                return self._tidy(value), column in _TAG_COLUMNS
            if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
                return one_line(", ".join(value)), True
        others = [value for key, value in row.items() if key not in NAME_COLUMNS and isinstance(value, str) and value]
        return (self._tidy(others[0]), False) if len(others) == 1 else None


def _text(path: Path) -> str:
    return decode_text(read_regular(path, MAX_METADATA_BYTES))[0]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    text = _text(path)
    if path.suffix.lower() == ".csv":
        yield from (dict(row) for row in csv.DictReader(io.StringIO(text, newline="")))
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number} is not JSON: {error}") from error
        if isinstance(row, dict):
            yield row
