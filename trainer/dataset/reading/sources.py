"""Find images with captions, repeats and masks in a folder, or in an IMAGE batch."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from PIL import Image

from ...config.prepare_sections import CaptionSettings
from ...core.counting import plural
from ...core.errors import UserError
from ...core.messages import File, Message
from ..captions.sidecars import LOOKS_LIKE_CAPTIONS, CaptionIndex, belongs_to
from ..images.decode import EXTENSIONS
from ..images.source_masks import find_masks
from .surrogates import replace_surrogates
from .walk import walk

MAX_FILE_BYTES = 1 << 30
MANY_REPEATS = 200  # more is probably a year or a number of images

_KOHYA_FOLDER = re.compile(r"^(\d{1,5})_(.+)$")
# files beside images that users do not expect to be read
_NOTES = {"readme", "license", "licence", "copying", "notes"}
_NO_IMAGES = {".json", ".jsonl", ".csv", ".toml", ".yaml", ".yml", ".npz", ".safetensors", ".db", ".ini", ".log", ".html", ".py", ".url"}


@dataclass(frozen=True)
class SourceImage:
    """One image of an IMAGE batch. Without a ``caption``, the instance prompt is used."""

    image: Image.Image
    name: str
    caption: str | None = None


@dataclass(frozen=True)
class Entry:
    """One source image before it is opened. ``name``: its path below the source, with forward slashes."""

    name: str
    path: Path | None = None
    image: Image.Image | None = None
    caption: str | None = None
    caption_from: str = ""
    repeats: int = 1
    instance: str = ""  # "trigger class" of a kohya folder
    is_regularisation: bool = False
    mask: Path | None = None  # beside the image


@dataclass
class SourceListing:
    """The images of a source."""

    entries: list[Entry]
    warnings: list[str] = field(default_factory=list)
    rejected: list[tuple[str, str, str]] = field(default_factory=list)  # name, reason, message

    def cleaned(self) -> SourceListing:
        """The same with ``replace_surrogates`` applied to all texts; the paths stay unchanged."""
        entries = [
            replace(
                entry, name=replace_surrogates(entry.name), instance=replace_surrogates(entry.instance),
                caption=None if entry.caption is None else replace_surrogates(entry.caption),
            )
            for entry in self.entries
        ]  # fmt: skip
        rejected = [(replace_surrogates(name), reason, replace_surrogates(message)) for name, reason, message in self.rejected]
        return SourceListing(entries, [replace_surrogates(text) for text in self.warnings], rejected)


def from_images(images: Sequence[SourceImage]) -> SourceListing:
    """Entries of an IMAGE batch with unique names. Raises UserError for an empty batch."""
    if not images:
        raise UserError("The IMAGE batch is empty.", "Connect at least one image.", kind="dataset")
    seen: Counter[str] = Counter()
    entries = []
    for number, source in enumerate(images, 1):
        name = source.name.strip() or f"image_{number:04d}"
        seen[name] += 1
        if seen[name] > 1:
            name = f"{name}_{seen[name]}"
        entries.append(Entry(name=name, image=source.image, caption=source.caption, caption_from="graph" if source.caption else ""))
    return SourceListing(entries)


def from_folder(
    root: Path,
    captions: CaptionSettings,
    *,
    lines: bool = False,
    skip: Sequence[Path] = (),
    inside: Sequence[Path] = (),
    read_ours: bool = False,
) -> SourceListing:
    """Every image below ``root`` in natural order, with captions, and with repeats and regularisation from the names of folders.

    ``captions``, ``lines``: how captions are read (``CaptionIndex``). ``skip``: folders to leave out, such as the dataset itself when it
    is inside its source. With ``inside``, a link is followed only to files below one of these folders. Datasets and exports of this
    program below ``root`` are not read but named in a warning, unless ``read_ours``. Raises UserError when there is no image.
    """
    walked = walk(root, skip=skip, inside=inside, read_ours=read_ours)
    roots = [path.resolve() for path in inside]
    outside = {path for path in walked.files if roots and path.is_symlink() and not _leads_below(path, roots)}
    files = [path for path in walked.files if path not in outside]
    files, left_out = _without_zero_repeats(root, files)
    masks = find_masks(files)
    no_images = {*masks.of.values(), *(path for path, _ in masks.others)}
    index = CaptionIndex(root, [path for path in files if path not in no_images], captions, lines=lines)
    entries = [
        _entry(root, path, index, masks.of.get(path))
        for path in sorted(masks.images, key=lambda path: natural_key(path.relative_to(root).as_posix()))
    ]
    if not entries:
        raise _nothing_found(root, files, walked.ours, left_out)
    found = SourceListing(entries, warnings=[*index.warnings(), *left_out])
    found.warnings += unread_files_warning([path.relative_to(root).as_posix() for path in files], captions.extensions)
    found.warnings += _many_repeats(root, entries)
    if walked.ours:
        names = ", ".join(path.relative_to(root).as_posix() for path in walked.ours[:5]) + (", …" if len(walked.ours) > 5 else "")
        found.warnings.append(f"Not read, because AnimeLoRA wrote it: {names}. To use such a folder, choose it as the source.")
    rejected = [*walked.rejected, *((path, "unsafe path", "a link that leads out of the allowed folders") for path in outside)]
    rejected += [(path, "mask", reason) for path, reason in masks.others]
    found.rejected += [(path.relative_to(root).as_posix(), reason, message) for path, reason, message in sorted(rejected)]
    return found


def _leads_below(path: Path, roots: Sequence[Path]) -> bool:
    try:
        real = path.resolve()
    except (OSError, RuntimeError):  # a loop of links
        return False
    return any(root in real.parents for root in roots)


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sort key with ``2.png`` before ``10.png``, the same on every system."""
    return [(0, int(part), part) if part.isdigit() and part.isascii() else (1, 0, part) for part in re.split(r"(\d+)", text.casefold())]


def kohya_folder(name: str) -> tuple[int, str] | None:
    """(repeats, "trigger class") of a folder named ``10_trigger class``, None for other names."""
    match = _KOHYA_FOLDER.match(name)
    return (int(match[1]), match[2].strip()) if match else None


def _entry(root: Path, path: Path, index: CaptionIndex, mask: Path | None = None) -> Entry:
    relative = PurePosixPath(path.relative_to(root).as_posix())
    repeats, instance = 1, ""
    # the innermost folder with such a name counts, which may be the source itself
    for folder in [_name(root), *relative.parts[:-1]]:
        parsed = kohya_folder(folder)
        if parsed:
            repeats, instance = max(1, parsed[0]), parsed[1]
    caption, origin = index.find(path)
    return Entry(
        name=relative.as_posix(), path=path, caption=caption, caption_from=origin, repeats=repeats, instance=instance,
        is_regularisation=_is_regularisation(root, relative), mask=mask,
    )  # fmt: skip


def _name(root: Path) -> str:
    """The name of the folder, also for ``.`` and ``..``; for a link the name of the link."""
    return Path(os.path.abspath(root)).name


def _without_zero_repeats(root: Path, files: list[Path]) -> tuple[list[Path], list[str]]:
    """(files that are not in folders such as ``0_rest``, which sd-scripts leaves out, too; a warning about each such folder)."""
    left_out: Counter[str] = Counter()
    kept = []
    for path in files:
        parts = PurePosixPath(path.relative_to(root).as_posix()).parts[:-1]
        zero = next(("/".join(parts[: depth + 1]) for depth, part in enumerate(parts) if (kohya_folder(part) or (1,))[0] == 0), "")
        if not zero:
            kept.append(path)
        elif path.suffix.lower() in EXTENSIONS:
            left_out[zero] += 1
    return kept, [
        f"The folder {folder} with {plural(count, 'image')} is left out, because its name means 0 repeats. "
        "Rename it if the number means something else."
        for folder, count in left_out.items()
    ]


def _many_repeats(root: Path, entries: Sequence[Entry]) -> list[str]:
    """Warnings about names such as ``2023_summer art``, which look like repeats by chance."""
    folders = {
        folder: parsed[0]
        for parts in {PurePosixPath(entry.name).parts[:-1] for entry in entries if entry.repeats > MANY_REPEATS}
        for folder in (_name(root), *parts)
        if (parsed := kohya_folder(folder)) and parsed[0] > MANY_REPEATS
    }
    return [
        f"The name of the folder {folder} means {repeats} repeats of each of its images, as for kohya's trainer. "
        "Rename it if the number means something else."
        for folder, repeats in folders.items()
    ]


def _is_regularisation(root: Path, relative: PurePosixPath) -> bool:
    """Whether the image is in ``reg/`` beside ``img/``, as in kohya's GUI, or in ``regularisation/``, as in our datasets."""
    top = relative.parts[0].lower() if len(relative.parts) > 1 else ""
    if top == "reg":
        return (root / "img").is_dir()
    return top in ("regularisation", "regularization")


def _nothing_found(root: Path, files: list[Path], ours: Sequence[Path], left_out: Sequence[str]) -> UserError:
    if left_out:
        return UserError(
            Message("No images are left in ", File(str(root)), ". ", left_out[0]), "Name the folder 1_… to use its images.", kind="dataset"
        )
    kinds = "PNG, JPEG, WebP, BMP, GIF, TIFF, AVIF"
    if ours:
        return UserError(
            Message(
                "No images found in ", File(str(root)), f", apart from what AnimeLoRA wrote itself: {ours[0].relative_to(root).as_posix()}."
            ),
            "Choose the folder with your images. To use that folder again, choose it as the source.",
            kind="dataset",
        )
    if not files:
        return UserError(Message("The folder ", File(str(root)), " is empty."), f"Put your images there ({kinds}).", kind="dataset")
    counts = Counter(path.suffix.lower() or "(no extension)" for path in files)
    listing = ", ".join(f"{count} {suffix} file{'s' if count > 1 else ''}" for suffix, count in counts.most_common(5))
    hint = "Choose the folder with the images, or convert them to PNG or JPEG first."
    if counts.keys() & {".zip", ".tar", ".cbz"}:
        hint = "Choose the archive itself as the source, or unpack it first."
    elif counts.keys() & {".heic", ".heif"}:
        hint = "HEIC photos must be converted: export them as JPEG or PNG."
    return UserError(
        Message("No images found in ", File(str(root)), f": looked for {kinds} in it and its sub-folders; found {listing}."),
        hint,
        kind="dataset",
    )


def unread_files_warning(names: Sequence[str], extensions: Sequence[str]) -> list[str]:
    """A warning that counts other files by kind, with an example. ``extensions``: those of caption files."""
    known = EXTENSIONS | _NO_IMAGES | LOOKS_LIKE_CAPTIONS | set(extensions)
    others = [name for name in names if (path := PurePosixPath(name)).suffix.lower() not in known and path.stem.lower() not in _NOTES]
    if not others:
        return []
    counts = Counter(PurePosixPath(name).suffix.lower() or "without an extension" for name in others)
    listing = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(12)) + (", …" if len(counts) > 12 else "")
    return [f"Not read: {listing}, for example {others[0]}. Save images as PNG or JPEG, videos as single frames, and unpack archives."]


def from_file(path: Path, captions: CaptionSettings, *, lines: bool = False) -> SourceListing:
    """A single image with the captions that lie beside it."""
    suffixes = {*captions.extensions, ".json"}
    files = [file for file in path.parent.iterdir() if file == path or (file.suffix.lower() in suffixes and belongs_to(file, path))]
    index = CaptionIndex(path.parent, files, captions, lines=lines)
    mask = find_masks(list(path.parent.iterdir())).of.get(path)
    return SourceListing([_entry(path.parent, path, index, mask)], index.warnings())
