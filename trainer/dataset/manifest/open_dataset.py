"""Opening a prepared dataset from its manifest, captions and masks."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...core.counting import plural
from ...core.errors import UserError
from ...core.files.reading import read_regular
from ...core.messages import Action, File, Message
from ..captions.caption_text import encoding_warning, read_caption_text
from ..layout import FOLDERS, HEADER, LARGEST_MANIFEST, LARGEST_MASK, ROWS, SCHEMA, SCHEMA_VERSION, caption_file
from .hashing import dataset_hash, hashed_header
from .items import Dataset, Item
from .manifest_schema import ManifestHeader, ManifestRow, parse_rows


def open_dataset(path: Path) -> Dataset:
    """Open a prepared dataset. Captions are read from the ``.txt`` files, so that users can edit them.

    Raises UserError when ``path`` is not a dataset, was written by a newer version, or misses files.
    """
    path = Path(path)
    raw = read_manifest_header(path)
    try:
        header = ManifestHeader.model_validate(raw)
        items, masks, notes = _read_items(path, header.rows_sha256, lines=header.training.wildcards)
        hashed = hashed_header(header.trigger, header.class_description, header.resolution, header.training)
        return Dataset(
            path=path, name=header.name, hash=dataset_hash(zip(items, masks, strict=True), hashed),
            trigger=header.trigger, class_description=header.class_description, resolution=header.resolution,
            items=items, training=header.training, settings=header.settings, notes=notes,
        )  # fmt: skip
    except ValidationError as error:
        raise UserError(
            Message("The manifest of the dataset ", File(str(path)), f" is damaged: {_explain(error)}."),
            "Prepare the dataset again.",
            kind="dataset",
        ) from error


def _explain(error: ValidationError) -> str:
    """The first problem and its location: ``line 3, weight: Input should be a valid number``."""
    problem = error.errors(include_url=False)[0]
    place = [f"line {part + 1}" if isinstance(part, int) and not i else str(part) for i, part in enumerate(problem["loc"])]
    message = str(problem["msg"]).removeprefix("Value error, ")
    more = error.error_count() - 1
    return (f"{', '.join(place)}: " if place else "") + message + (f" (and {more} more)" if more else "")


def read_manifest_header(path: Path) -> dict[str, Any]:
    """The content of ``manifest.json``. Raises UserError when it is missing, damaged, of another program or of another version."""
    file = path / HEADER
    try:
        header = json.loads(read_regular(file, LARGEST_MANIFEST))
    except FileNotFoundError:
        raise UserError(
            Message(File(str(path)), f" is not a prepared dataset: it has no {HEADER}."),
            Message("Prepare it first with ", Action.PREPARE_DATASET, "."),
            kind="dataset",
        ) from None
    except OSError as error:
        raise UserError(
            Message(File(str(file)), f" cannot be read: {error.strerror}."), "Check the folder's permissions.", kind="dataset"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(Message(File(str(file)), f" is damaged: {error}."), "Prepare the dataset again.", kind="dataset") from error
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        raise UserError(
            Message(File(str(file)), " belongs to another program."), "Choose a folder that Dataset Prep wrote.", kind="dataset"
        )
    if header.get("version") != SCHEMA_VERSION:
        raise UserError(
            Message(File(str(file)), f" has version {header.get('version')}, this AnimeLoRA reads version {SCHEMA_VERSION}."),
            "Update AnimeLoRA, or prepare the dataset again.",
            kind="dataset",
        )
    return header


def _read_items(path: Path, rows_sha256: str, *, lines: bool) -> tuple[list[Item], list[str], tuple[str, ...]]:
    """(items with their captions, SHA-256 of their masks or "", warnings). ``lines``: captions may have several lines."""
    rows = parse_rows(_read_rows(path, rows_sha256))
    files, not_files = _list_files(path)
    _require_files(path, rows, files, not_files)
    items: list[Item] = []
    masks: list[str] = []
    guessed: dict[str, list[str]] = {}
    prefix = f"{path}{os.sep}"  # joining strings is faster than joining paths, which counts with 100,000 images
    for row in rows:
        text_file = caption_file(row.file)
        caption = _read_caption(prefix + text_file, lines=lines, guessed=guessed) if text_file in files else row.caption
        item = Item(
            file=row.file, sha256=row.sha256, caption=caption, width=row.width, height=row.height,
            original_size=row.original_size, crop_top_left=row.crop_top_left, repeats=row.repeats, mask=row.mask,
            is_regularisation=row.is_regularisation, weight=row.weight, crop_right=row.crop_right,
        )  # fmt: skip
        items.append(item)
        # of the present file, because users may edit masks
        masks.append(_mask_digest(path / row.mask) if row.mask else "")
    return items, masks, tuple(encoding_warning(encoding, names) for encoding, names in guessed.items())


def _read_rows(path: Path, rows_sha256: str) -> bytes:
    try:
        data = read_regular(path / ROWS, LARGEST_MANIFEST)
    except OSError as error:
        raise UserError(
            Message(File(str(path / ROWS)), f" cannot be read: {error.strerror}."), "Prepare the dataset again.", kind="dataset"
        ) from error
    if hashlib.sha256(data).hexdigest() != rows_sha256:
        raise UserError(
            Message(File(str(path / ROWS)), f" does not belong to {HEADER}: it was changed, or writing it was interrupted."),
            "Prepare the dataset again; finished images are reused. To change captions, edit the .txt files.",
            kind="dataset",
        )
    return data


def _require_files(path: Path, rows: Sequence[ManifestRow], files: set[str], not_files: set[str]) -> None:
    """Raises UserError for images and masks that are missing, and for devices, pipes and folders in place of a file."""
    missing: list[str] = []
    for row in rows:
        for name in (row.file, row.mask, caption_file(row.file)):
            if name and name in not_files:
                raise UserError(
                    Message(File(str(path / name)), " is a device, a pipe or a folder, not a file."),
                    "Remove it and prepare the dataset again.",
                    kind="dataset",
                )
        missing += [name for name in (row.file, row.mask) if name and name not in files]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(
            Message(f"{plural(len(missing), 'file')} of the dataset ", File(str(path)), f" {verb} missing, for example {missing[0]}."),
            "Prepare the dataset again: missing images are made from their sources.",
            kind="dataset",
        )


def _mask_digest(path: Path) -> str:
    try:
        return hashlib.sha256(read_regular(path, LARGEST_MASK)).hexdigest()
    except OSError as error:
        raise UserError(
            Message("The mask ", File(str(path)), f" cannot be read ({error})."),
            "Prepare the dataset again, or save the mask as a PNG file.",
            kind="dataset",
        ) from error


def _read_caption(path: str, *, lines: bool, guessed: dict[str, list[str]]) -> str:
    """A caption file of a dataset, in whatever encoding an editor saved it. ``lines``: several lines stay apart.

    ``guessed`` collects the names of files whose encoding was guessed, by encoding.
    """
    try:
        text, encoding = read_caption_text(path)
    except OSError as error:
        raise UserError(
            Message("The caption ", File(str(path)), f" cannot be read ({error.strerror or error})."),
            "Save it as a text file, or delete it and prepare the dataset again.",
            kind="dataset",
        ) from error
    if encoding:
        guessed.setdefault(encoding, []).append(os.path.basename(path))
    return text if lines else text.replace("\n", ", ")


def _list_files(path: Path) -> tuple[set[str], set[str]]:
    """(names of the dataset's files, names of anything else). Directory listings, because a stat for each image takes longer."""
    files: set[str] = set()
    not_files: set[str] = set()
    for folder in FOLDERS:
        prefix = f"{folder}/" if folder else ""
        try:
            with os.scandir(path / folder) as entries:
                for entry in entries:
                    if entry.is_file():
                        files.add(prefix + entry.name)
                    elif os.path.exists(entry.path):  # not a broken link
                        not_files.add(prefix + entry.name)
        except (FileNotFoundError, NotADirectoryError):
            continue
    return files, not_files
