"""The prepared dataset as a trainer reads it: a folder with PNG images, captions and a manifest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..core.errors import UserError
from ..core.files import atomic_path, read_regular, write_atomic
from .caption_text import guessed_note, read_caption_text
from .rows import Header, parse_rows
from .settings import TrainingHints

SCHEMA = "animelora-dataset"
SCHEMA_VERSION = 1
HEADER = "manifest.json"
ROWS = "manifest.jsonl"
REGULARISATION = "regularisation"
MASKS = "masks"
LARGEST_MASK = 1 << 28  # bytes
LARGEST_MANIFEST = 4 << 30  # bytes


@dataclass(frozen=True)
class Item:
    """One training picture. Paths are relative to the dataset's folder, with forward slashes."""

    file: str
    sha256: str  # of the PNG file's bytes
    caption: str  # final: the trigger word is in front
    width: int
    height: int
    original_size: tuple[int, int]  # (width, height) of the source
    crop_top_left: tuple[int, int]  # (top, left) in the scaled source: SDXL's crop conditioning
    repeats: int = 1
    mask: str | None = None  # 8-bit grey PNG of the same size: how much each pixel counts in the loss
    is_regularisation: bool = False
    weight: float = 1.0  # of this picture's loss
    crop_right: int | None = None  # what the crop leaves to the right of the picture, as crop_top_left; None in older manifests


@dataclass(frozen=True)
class Row:
    """A manifest line: the item with where it came from and what was done to it."""

    item: Item
    mask_sha256: str = ""
    bytes: int = 0
    source: str = ""
    source_sha256: str = ""
    source_format: str = ""
    caption_from: str = ""
    steps: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """One line of ``manifest.jsonl``."""
        data = {name: getattr(self.item, name) for name in Item.__dataclass_fields__}
        return data | {name: getattr(self, name) for name in Row.__dataclass_fields__ if name != "item"}


@dataclass(frozen=True)
class Dataset:
    """An opened dataset. ``hash`` changes with any picture, mask, caption, weight or training hint, and with nothing else."""

    path: Path
    name: str
    hash: str
    trigger: str
    class_description: str
    resolution: int
    items: Sequence[Item] = field(repr=False)
    training: TrainingHints = field(default_factory=TrainingHints)
    settings: dict[str, Any] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()  # what a user should know about how it was read

    @property
    def members(self) -> tuple[Dataset, ...]:
        """The datasets that are trained together: this one alone, unless ``combine`` made it."""
        return (self,)

    def member(self, index: int) -> Dataset:
        """The dataset that picture ``index`` belongs to."""
        return self

    def image_path(self, item: Item) -> Path:
        """The picture's file."""
        return self.path / item.file

    def mask_path(self, item: Item) -> Path | None:
        """The loss mask's file."""
        return self.path / item.mask if item.mask else None

    def buckets(self) -> dict[str, int]:
        """``"512x512"`` -> number of pictures, largest group first."""
        counts: dict[str, int] = {}
        for item in self.items:
            name = f"{item.width}x{item.height}"
            counts[name] = counts.get(name, 0) + 1
        return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))

    def rows(self) -> Iterator[dict[str, Any]]:
        """The manifest's lines, with sources and steps."""
        for line in read_regular(self.path / ROWS, LARGEST_MANIFEST).splitlines():
            yield json.loads(line)


def dataset_hash(rows: Iterable[tuple[Item, str]], header: dict[str, Any]) -> str:
    """SHA-256 over what a trainer sees. ``rows``: items with their mask's hash; ``header``: see ``hashed_header``."""
    digest = hashlib.sha256(json.dumps([SCHEMA_VERSION, header], sort_keys=True).encode())
    for item, mask in rows:
        seen = (
            item.sha256, item.caption, item.width, item.height, item.original_size, item.crop_top_left,
            item.repeats, mask, item.is_regularisation, item.weight,
        )  # fmt: skip
        digest.update(json.dumps(seen).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def hashed_header(trigger: str, class_description: str, resolution: int, training: TrainingHints) -> dict[str, Any]:
    """The part of the header that a trainer sees."""
    hints = training.model_dump(mode="json")
    for name in ("wildcards", "keep_tokens_separator"):  # came later: a dataset that does without keeps its hash
        if hints[name] == TrainingHints.model_fields[name].default:
            del hints[name]
    return {"trigger": trigger, "class": class_description, "resolution": resolution, "training": hints}


def write_manifest(folder: Path, header: dict[str, Any], rows: Sequence[Row]) -> None:
    """Write both files; the header last, with the rows' hash, so that a half-written pair is noticed."""
    digest = hashlib.sha256()
    with atomic_path(folder / ROWS) as temporary, temporary.open("wb") as file:
        for row in rows:
            line = json.dumps(row.to_json(), ensure_ascii=False).encode("utf-8") + b"\n"
            digest.update(line)
            file.write(line)
    full = {"schema": SCHEMA, "version": SCHEMA_VERSION, **header, "count": len(rows), "rows_sha256": digest.hexdigest()}
    write_atomic(folder / HEADER, json.dumps(full, indent=1, ensure_ascii=False) + "\n")


def open_dataset(path: Path) -> Dataset:
    """Open a prepared dataset; captions are those in the ``.txt`` files, so that editing one by hand counts.

    Raises UserError when ``path`` is no dataset, was written by a newer version, or lost files.
    """
    path = Path(path)
    raw = read_header(path)
    try:
        header = Header.model_validate(raw)
        items, masks, notes = _read_items(path, header.rows_sha256, lines=header.training.wildcards)
        hashed = hashed_header(header.trigger, header.class_description, header.resolution, header.training)
        return Dataset(
            path=path, name=header.name, hash=dataset_hash(zip(items, masks, strict=True), hashed),
            trigger=header.trigger, class_description=header.class_description, resolution=header.resolution,
            items=items, training=header.training, settings=header.settings, notes=notes,
        )  # fmt: skip
    except ValidationError as error:
        raise UserError(
            f"The manifest of the dataset {path} is damaged: {_explain(error)}.", "Prepare the dataset again.", kind="dataset"
        ) from error


def _explain(error: ValidationError) -> str:
    """The first problem, with its place: ``line 3, weight: Input should be a valid number``."""
    problem = error.errors(include_url=False)[0]
    place = [f"line {part + 1}" if isinstance(part, int) and not i else str(part) for i, part in enumerate(problem["loc"])]
    message = str(problem["msg"]).removeprefix("Value error, ")
    more = error.error_count() - 1
    return (f"{', '.join(place)}: " if place else "") + message + (f" (and {more} more)" if more else "")


def read_header(path: Path) -> dict[str, Any]:
    """``manifest.json``, checked for schema and version. Raises UserError."""
    file = path / HEADER
    try:
        header = json.loads(read_regular(file, LARGEST_MANIFEST))
    except FileNotFoundError:
        raise UserError(
            f"{path} is not a prepared dataset: it has no {HEADER}.",
            "Prepare it first: Dataset Prep on the canvas, or python -m trainer prepare FOLDER --out DIR --trigger WORD.",
            kind="dataset",
        ) from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.", "Check the folder's permissions.", kind="dataset") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged: {error}.", "Prepare the dataset again.", kind="dataset") from error
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        raise UserError(f"{file} belongs to another program.", "Choose a folder that Dataset Prep wrote.", kind="dataset")
    if header.get("version") != SCHEMA_VERSION:
        raise UserError(
            f"{file} has version {header.get('version')}, this AnimeLoRA reads version {SCHEMA_VERSION}.",
            "Update AnimeLoRA, or prepare the dataset again.",
            kind="dataset",
        )
    return header


def caption_file(file: str) -> str:
    """The caption that belongs to a picture: ``a/b.png`` -> ``a/b.txt``."""
    return file.removesuffix(".png") + ".txt"


def _read_items(path: Path, rows_sha256: str, *, lines: bool) -> tuple[list[Item], list[str], tuple[str, ...]]:
    try:
        data = read_regular(path / ROWS, LARGEST_MANIFEST)
    except OSError as error:
        raise UserError(f"{path / ROWS} cannot be read: {error.strerror}.", "Prepare the dataset again.", kind="dataset") from error
    if hashlib.sha256(data).hexdigest() != rows_sha256:
        raise UserError(
            f"{path / ROWS} does not belong to {HEADER}: it was changed, or writing it was interrupted.",
            "Prepare the dataset again; finished pictures are reused. To change captions, edit the .txt files.",
            kind="dataset",
        )
    present, odd = _listing(path)
    items: list[Item] = []
    masks: list[str] = []
    missing: list[str] = []
    guessed: dict[str, list[str]] = {}
    prefix = os.path.join(path, "")
    for row in parse_rows(data):
        text_file = caption_file(row.file)
        for name in (row.file, row.mask, text_file):
            if name and name in odd:
                raise UserError(
                    f"{path / name} is a device, a pipe or a folder, not a file.",
                    "Remove it and prepare the dataset again.",
                    kind="dataset",
                )
        missing += [name for name in (row.file, row.mask) if name and name not in present]
        caption = row.caption
        if text_file in present:
            caption = _own_caption(prefix + text_file, lines=lines, guessed=guessed)
        item = Item(
            file=row.file, sha256=row.sha256, caption=caption, width=row.width, height=row.height,
            original_size=row.original_size, crop_top_left=row.crop_top_left, repeats=row.repeats, mask=row.mask,
            is_regularisation=row.is_regularisation, weight=row.weight, crop_right=row.crop_right,
        )  # fmt: skip
        items.append(item)
        # of the file as it is: a mask may be painted over by hand
        masks.append(_mask_digest(path / row.mask) if row.mask and row.mask in present else "")
    if missing:
        raise UserError(
            f"The dataset {path} lost {len(missing)} file{'s' * (len(missing) > 1)}, for example {missing[0]}.",
            "Prepare the dataset again: missing pictures are made from their sources.",
            kind="dataset",
        )
    return items, masks, tuple(guessed_note(encoding, names) for encoding, names in guessed.items())


def _mask_digest(path: Path) -> str:
    try:
        return hashlib.sha256(read_regular(path, LARGEST_MASK)).hexdigest()
    except OSError as error:
        raise UserError(
            f"The mask {path} cannot be read ({error}).", "Prepare the dataset again, or save the mask as a PNG file.", kind="dataset"
        ) from error


def _own_caption(path: str, *, lines: bool, guessed: dict[str, list[str]]) -> str:
    """A caption file of ours, whatever an editor made of it, read as one beside a source image is. ``lines``: several stay apart."""
    try:
        text, encoding = read_caption_text(path)
    except OSError as error:
        raise UserError(
            f"The caption {path} cannot be read ({error.strerror or error}).",
            "Save it as a text file, or delete it and prepare the dataset again.",
            kind="dataset",
        ) from error
    if encoding:
        guessed.setdefault(encoding, []).append(os.path.basename(path))
    return text if lines else text.replace("\n", ", ")


def _listing(path: Path) -> tuple[set[str], set[str]]:
    """The dataset's files by name, and what is there but no file: one directory listing each, not one stat for each picture."""
    files: set[str] = set()
    odd: set[str] = set()
    for prefix in ("", f"{REGULARISATION}/", f"{MASKS}/", f"{MASKS}/{REGULARISATION}/"):
        try:
            with os.scandir(path / prefix) as entries:
                for entry in entries:
                    if entry.is_file():
                        files.add(prefix + entry.name)
                    elif os.path.exists(entry.path):  # not a link to nowhere
                        odd.add(prefix + entry.name)
        except (FileNotFoundError, NotADirectoryError):
            continue
    return files, odd
