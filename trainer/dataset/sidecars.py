"""Captions that lie beside pictures: text files, Hugging Face metadata, kohya's metadata JSON."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..files import read_regular
from .decode import EXTENSIONS
from .encodings import decode_text
from .report import plural

MAX_CAPTION_BYTES = 1 << 20
MAX_METADATA_BYTES = 512 << 20
TEXT_COLUMNS = ("text", "caption", "captions", "prompt", "tags", "tag_string", "description", "additional_feature")
_LOOKS_LIKE_CAPTIONS = {".tags", ".tag", ".text", ".caption", ".cap", ".captions", ".txt", ".wd14", ".booru", ".prompt", ".md", ".rtf"}


class CaptionIndex:
    """Knows the caption of every picture of a folder.

    Order: a text file beside the picture, then ``metadata.jsonl``/``metadata.csv`` of the nearest folder above, then
    kohya's metadata JSON. What is there but fits no picture becomes a warning: captions are never ignored silently.
    """

    def __init__(self, root: Path, files: Sequence[Path], extensions: Sequence[str]) -> None:
        self._root = root
        self._extensions = tuple(extensions)
        self._problems: list[str] = []
        self._unreadable: list[str] = []
        self._guessed: dict[str, list[str]] = {}
        self._pictures = [path for path in files if path.suffix.lower() in EXTENSIONS]
        texts = [path for path in files if path.suffix.lower() in self._extensions]
        # the exact name first; then without regard to case, because A.TXT belongs to a.png on Windows
        self._texts = {_folded(path): path for path in texts} | {path.as_posix(): path for path in texts}
        self._all = list(files)
        self._used: set[Path] = set()
        self._metadata: dict[str, str] = {}
        self._kohya: dict[str, str] = {}
        self._short: dict[str, str] = {}
        for path in files:
            if path.name.lower() in ("metadata.jsonl", "metadata.csv"):
                self._read_metadata(path)
            elif path.suffix.lower() == ".json":
                self._read_kohya(path)
        self._metadata_used = 0

    def find(self, picture: Path) -> tuple[str | None, str]:
        """(caption, where from) or (None, "")."""
        for extension in self._extensions:
            for candidate in (picture.with_suffix(extension), picture.with_name(picture.name + extension)):
                text_file = self._texts.get(candidate.as_posix()) or self._texts.get(_folded(candidate))
                if text_file is not None:
                    self._used.add(text_file)
                    text = self._read_text(text_file)
                    if text:
                        return text, text_file.suffix.lower()
        key = _folded(picture)
        if key in self._metadata:
            self._metadata_used += 1
            return self._metadata[key], "metadata"
        relative = picture.relative_to(self._root).with_suffix("").as_posix().casefold()
        stem = picture.stem.casefold()
        listed = self._kohya.get(relative) or self._kohya.get(stem) or self._short.get(stem)
        if listed:
            return listed, "kohya metadata"
        return None, ""

    def warnings(self) -> list[str]:
        """What was found but not used; call after ``find`` for every picture."""
        found = list(self._problems)
        if self._unreadable:
            found.append(f"{plural(len(self._unreadable), 'caption file')} cannot be read, for example {self._unreadable[0]}.")
        for encoding, names in self._guessed.items():
            verb = "is not UTF-8 and was" if len(names) == 1 else "are not UTF-8 and were"
            found.append(f"{plural(len(names), 'caption file')} {verb} read as {encoding}, for example {names[0]}. Check the captions.")
        unused = sorted(set(self._texts.values()) - self._used)
        # a lone readme is no caption
        unused = [path for path in unused if path.stem.lower() not in ("readme", "license", "licence", "notes", "trigger", "classes")]
        if unused:
            found.append(
                f"{len(unused)} caption file{'s' * (len(unused) > 1)} without a picture of the same name, for example {unused[0].name}."
            )
        if self._metadata and self._metadata_used < len(self._metadata):
            count = len(self._metadata) - self._metadata_used
            found.append(f"{count} rows of metadata.jsonl or metadata.csv name no picture that needed them.")
        stems = {_folded(path.with_suffix("")) for path in self._pictures}
        others = Counter(
            path.suffix.lower()
            for path in self._all
            if path.suffix.lower() in _LOOKS_LIKE_CAPTIONS - set(self._extensions) and _folded(path.with_suffix("")) in stems
        )
        for suffix, count in others.most_common():
            found.append(f"{count} {suffix} files beside pictures were not read; add {suffix} to the caption extensions to use them.")
        return found

    def _read_text(self, path: Path) -> str:
        try:
            data = read_regular(path, MAX_CAPTION_BYTES)
        except OSError as error:
            self._unreadable.append(f"{path.name} ({error.strerror})")
            return ""
        text, guessed = decode_text(data)
        if guessed:
            self._guessed.setdefault(guessed, []).append(path.name)
        return one_line(text)

    def _read_metadata(self, path: Path) -> None:
        try:
            rows = list(_rows(path))
        except (OSError, ValueError, csv.Error) as error:
            self._problems.append(f"{path.relative_to(self._root).as_posix()} cannot be read: {error}")
            return
        without_text = 0
        for row in rows:
            name = row.get("file_name") or row.get("file") or row.get("image") or row.get("filename")
            text = _text_of(row)
            if not isinstance(name, str) or "\x00" in name or text is None:
                without_text += 1
            else:
                self._metadata[_folded(path.parent / name)] = text
        if without_text:
            self._problems.append(
                f"{without_text} rows of {path.name} have no file_name or no caption column (looked for {', '.join(TEXT_COLUMNS)})."
            )

    def _read_kohya(self, path: Path) -> None:
        """kohya's ``meta_cap.json``: picture key (path or stem) -> {"caption": …, "tags": …}."""
        try:
            data = json.loads(decode_text(read_regular(path, MAX_METADATA_BYTES))[0])
        except (OSError, ValueError, RecursionError):
            return
        if not isinstance(data, dict):
            return
        for key, value in data.items():
            if not isinstance(value, dict):
                continue
            # kohya joins caption and tags in this order (FineTuningDataset)
            parts = [value[k] for k in ("caption", "tags") if isinstance(value.get(k), str) and value[k].strip()]
            if not parts:
                continue
            text = one_line(", ".join(parts))
            name = str(key).replace("\\", "/").casefold()
            suffix = "." + name.rsplit(".", 1)[-1]
            stem = name.removesuffix(suffix) if suffix in EXTENSIONS else name
            root = self._root.resolve().as_posix().casefold() + "/"
            self._kohya[stem.removeprefix(root)] = text
            short = stem.rsplit("/", 1)[-1]
            if short != stem:  # the bare name serves only while it is unambiguous
                self._short[short] = "" if short in self._short and self._short[short] != text else text


def one_line(text: str) -> str:
    """Lines joined with commas (a tag on each line is common), spaces tidied."""
    lines = (" ".join(line.replace("\x00", "").split()).strip(" ,") for line in text.splitlines())
    return ", ".join(line for line in lines if line)


def _text_of(row: dict[str, Any]) -> str | None:
    for column in TEXT_COLUMNS:
        value = row.get(column)
        if isinstance(value, str) and value.strip():
            return one_line(value)
        if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
            return one_line(", ".join(value))
    others = [
        value for key, value in row.items() if key not in ("file_name", "file", "image", "filename") and isinstance(value, str) and value
    ]
    return one_line(others[0]) if len(others) == 1 else None


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    text, _ = decode_text(read_regular(path, MAX_METADATA_BYTES))
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


def _folded(path: Path) -> str:
    return path.as_posix().casefold()
