"""The caption of every image in a folder: from a text file beside it, its own JSON file, or a table of captions."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...config.prepare_sections import CaptionSettings
from ...core.counting import plural
from ...core.files.reading import read_regular
from ...core.messages import DatasetSetting, Message
from ..images.decode import EXTENSIONS
from ..layout import HEADER, ROWS
from .booru import caption_of_json, spaced, split_spaced
from .caption_tables import CaptionTables, folded
from .caption_text import MAX_CAPTION_BYTES, encoding_warning, one_line, read_caption_text
from .encodings import decode_text

META = "_meta.json"  # waifuc's .NAME_meta.json
_LARGEST_JSON = 16 << 20  # bytes, of one image's file
LOOKS_LIKE_CAPTIONS = {".tags", ".tag", ".text", ".caption", ".cap", ".captions", ".txt", ".wd14", ".booru", ".prompt", ".md", ".rtf"}
DATA = {".xml", ".yaml", ".yml", ".xmp"}
_NO_CAPTIONS = ("readme", "license", "licence", "notes", "trigger", "classes")  # names of text files that need no image


class CaptionIndex:
    """Finds the caption of every image in a folder.

    Order: a text file beside the image, its own JSON file, a table that names it (``CaptionTables``). Files that are not used lead to a
    warning, so that captions are never ignored silently. ``lines``: keep the lines of a file apart, as variants of the caption.
    """

    def __init__(self, root: Path, files: Sequence[Path], settings: CaptionSettings, *, lines: bool = False) -> None:
        self._root = root
        self._settings = settings
        self._lines = lines
        self._files = list(files)
        images = [path for path in files if path.suffix.lower() in EXTENSIONS]
        self._exact = {_composed(path.with_suffix("")) for path in images} | {_composed(path) for path in images}
        self._stems = {folded(path.with_suffix("")) for path in images} | {folded(path) for path in images}
        self._texts = _by_name(path for path in files if path.suffix.lower() in settings.extensions)
        self._json = _by_name(path for path in files if self._is_own_json(path))
        self._tables = CaptionTables(root, lines=lines)
        own = {path for paths in self._json.values() for path in paths}
        for path in files:
            is_manifest = path.name in (HEADER, ROWS) and (path.parent / HEADER).is_file() and (path.parent / ROWS).is_file()
            if path not in own and not is_manifest and path.suffix.lower() in (".json", ".jsonl", ".csv"):
                self._tables.read(path)
        self._used: set[Path] = set()
        self._unreadable: list[str] = []
        self._guessed: dict[str, list[str]] = {}
        self._noted: dict[str, list[str]] = {}  # how captions were interpreted -> names of their files

    def find(self, image: Path) -> tuple[str | None, str]:
        """(caption, origin), or (None, "") for an image without one."""
        for extension in self._settings.extensions:
            for candidate in (image.with_suffix(extension), image.with_name(image.name + extension)):
                text_file = self._match(self._texts, candidate)
                if text_file is None:
                    continue
                self._used.add(text_file)
                if text := self._read_text(text_file):
                    return text, text_file.suffix.lower()
        # a.json (kohya, Hydrus), a.png.json (gallery-dl, Hydrus), .a_meta.json (waifuc)
        endings = (f"{image.stem}.json", f"{image.name}.json", f".{image.stem}{META}", f"{image.stem}{META}")
        for candidate in (image.with_name(name) for name in endings):
            json_file = self._match(self._json, candidate)
            if json_file is not None and (text := self._read_json(json_file)):
                self._used.add(json_file)
                return text, "JSON file"
        listed = self._tables.find(image)
        if listed is None:
            return None, ""
        text, origin, tags = listed
        return self._separated(text, image.name, tags=tags), origin

    def warnings(self) -> list[str]:
        """Files that were not used, and captions that needed interpretation; call it after ``find`` for every image."""
        warnings = self._tables.warnings()
        if self._unreadable:
            warnings.append(f"{plural(len(self._unreadable), 'caption file')} cannot be read, for example {self._unreadable[0]}.")
        warnings += [encoding_warning(encoding, names) for encoding, names in self._guessed.items()]
        for note, names in self._noted.items():
            warnings.append(Message(f"{plural(len(names), 'caption')}, for example of {names[0]}: ", note))
        return warnings + self._unused_texts() + self._unread_files()

    def _unused_texts(self) -> list[str]:
        unused = sorted({path for paths in self._texts.values() for path in paths} - self._used)
        beside = [path for path in unused if self._names_an_image(path)]
        alone = [path for path in unused if path not in beside and path.stem.lower() not in _NO_CAPTIONS]
        warnings = []
        if beside:
            verb = "was" if len(beside) == 1 else "were"
            warnings.append(
                f"{plural(len(beside), 'caption file')} {verb} not read, because the image has another one, for example {beside[0].name}."
            )
        if alone:
            warnings.append(f"{plural(len(alone), 'caption file')} without an image of the same name, for example {alone[0].name}.")
        return warnings

    def _unread_files(self) -> list[str]:
        warnings = []
        others = Counter(
            path.suffix.lower()
            for path in self._files
            if path.suffix.lower() in LOOKS_LIKE_CAPTIONS - set(self._settings.extensions) and self._names_an_image(path)
        )
        for suffix, count in others.most_common():
            warnings.append(f"{count} {suffix} files beside images were not read; add {suffix} to the caption extensions to use them.")
        read = {folded(_image_stem(path)) for path in self._used}  # the JSON file of an image with a text file is not worth a warning
        own = [path for paths in self._json.values() for path in paths if folded(_image_stem(path)) not in read]
        data = [path for path in self._files if path.suffix.lower() in DATA and self._names_an_image(path)]
        unread = sorted({*self._tables.unknown, *own, *data})
        if unread:
            example = unread[0].relative_to(self._root).as_posix()
            warnings.append(
                f"No captions were recognised in {plural(len(unread), 'data file')}, for example {example}. "
                "Captions are read from text files beside the images, metadata.jsonl, and the JSON files of gallery-dl, waifuc, Hydrus "
                "and kohya."
            )
        for path in self._files:
            if path.suffix.lower() == ".toml" and _is_dataset_config(path):
                warnings.append(
                    f"{path.name} is a configuration of kohya's trainer and was not read: its num_repeats, class_tokens and other settings "
                    "have no effect here. Name the folders 10_name for repeats, and set the rest in the dataset settings."
                )
        return warnings

    def _names_an_image(self, path: Path) -> bool:
        return folded(path.with_suffix("")) in self._stems

    def _is_own_json(self, path: Path) -> bool:
        return path.suffix.lower() == ".json" and (self._names_an_image(path) or folded(_image_stem(path)) in self._stems)

    def _match(self, by_name: dict[str, list[Path]], candidate: Path) -> Path | None:
        """The file with the candidate's name; one with exactly the name of another image belongs to that one (X.PNG, x.png and x.txt)."""
        paths = by_name.get(folded(candidate), ())
        wanted = _composed(_image_stem(candidate))
        for path in paths:
            if _composed(_image_stem(path)) == wanted:
                return path
        return next((path for path in paths if _composed(_image_stem(path)) not in self._exact), None)

    def _read_text(self, path: Path) -> str:
        try:
            text, guessed = read_caption_text(path)
        except OSError as error:
            self._unreadable.append(f"{path.name} ({error.strerror})")
            return ""
        if guessed:
            self._guessed.setdefault(guessed, []).append(path.name)
        if not text:
            self._note("the caption file is empty.", path.name)
        if "\n" in text and not self._lines:
            self._note(
                Message(
                    "its lines were joined with commas. If each line is a separate caption, set ",
                    DatasetSetting("training.wildcards"),
                    ": then one of them is chosen each time.",
                ),
                path.name,
            )
            text = one_line(text)
        return self._separated(text, path.name)

    def _read_json(self, path: Path) -> str:
        try:
            parts = caption_of_json(json.loads(decode_text(read_regular(path, _LARGEST_JSON))[0]))
        except (OSError, ValueError, RecursionError) as error:
            self._unreadable.append(f"{path.name} ({getattr(error, 'strerror', None) or error})")
            self._used.add(path)
            return ""
        return ", ".join(part if self._settings.underscores else spaced(part) for part in parts)

    def _separated(self, text: str, name: str, *, tags: bool = False) -> str:
        """``text`` with commas between tags that were separated by spaces."""
        chosen = self._settings.separator
        if chosen == "comma":
            return text
        lines = []
        for line in text.split("\n"):
            parts = line.split() if chosen == "space" else split_spaced(line, tags=tags)
            if parts is None:
                lines.append(line)
                continue
            if chosen == "auto":
                separator = DatasetSetting("captions.separator", "comma")
                self._note(Message("read as tags separated by spaces. If it is a sentence, set ", separator, "."), name)
            lines.append(", ".join(part if self._settings.underscores else spaced(part) for part in parts))
        return "\n".join(lines)

    def _note(self, note: str, name: str) -> None:
        names = self._noted.setdefault(note, [])
        if not names or names[-1] != name:
            names.append(name)


def belongs_to(path: Path, image: Path) -> bool:
    """Whether ``path`` is the image, or is named like a caption file of it."""
    return path == image or folded(image.with_suffix("")) == folded(_image_stem(path)) or folded(image) == folded(path.with_suffix(""))


def _image_stem(path: Path) -> Path:
    """The path that a caption file and its image have in common: without extension and without waifuc's suffix."""
    if path.name.lower().endswith(META):
        return path.with_name(path.name[: -len(META)].removeprefix("."))
    return path.with_suffix("")


def _by_name(paths: Iterable[Path]) -> dict[str, list[Path]]:
    by_name: dict[str, list[Path]] = {}
    for path in sorted(paths):
        by_name.setdefault(folded(path), []).append(path)
    return by_name


def _composed(path: Path) -> str:
    return unicodedata.normalize("NFC", path.as_posix())


def _is_dataset_config(path: Path) -> bool:
    try:
        return b"[[datasets" in read_regular(path, MAX_CAPTION_BYTES)
    except OSError:
        return False
