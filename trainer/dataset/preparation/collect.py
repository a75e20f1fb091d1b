"""Everything that a source holds, each image read once for its hash; archives are unpacked for as long as they are needed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ...core.errors import Cancelled, UserError
from ...core.work.parallel import ordered_map
from ..images.decode import EXTENSIONS
from ..layout import REGULARISATION, WORK
from ..reading import sources
from ..reading.archive import is_archive, unpack
from ..reading.sources import Entry, Found, SourceImage
from ..settings import PrepareSettings
from .candidates import content_hash
from .folder_identity import Preparation, batch, can_be_made, place_of, siblings
from .journal import locked

Progress = Callable[[int, int, str], None]
Source = Path | Sequence[SourceImage]
Hashed = tuple[Entry, str, str]  # a source image, its SHA-256, why it cannot be read


@dataclass(frozen=True)
class Gathered:
    """``hashed`` has an entry for each one of ``found``; ``preparation`` says which folder this belongs to."""

    found: Found
    hashed: list[Hashed]
    preparation: Preparation


@contextmanager
def gathered(
    source: Source,
    regularisation: Source | None,
    out_root: Path,
    settings: PrepareSettings,
    inside: Sequence[Path],
    progress: Progress,
    should_stop: Callable[[], bool],
    waiting: Callable[[], None],
) -> Iterator[Gathered]:
    """Both sources. What was unpacked is there until the end of the block; ``waiting`` is called when another process unpacks the same."""
    with _unpacking(out_root, (source, regularisation), should_stop, waiting) as unpack_to:
        written = siblings(out_root, settings)
        found = _find(source, written, unpack_to, settings, inside, should_stop).cleaned()
        if regularisation is not None:
            extra = _find(regularisation, written, unpack_to, settings, inside, should_stop, "regularisation").cleaned()
            found.entries += [_as_regularisation(entry) for entry in extra.entries]
            found.warnings += extra.warnings
            found.rejected += extra.rejected
        hashed = _hashed(found.entries, progress, should_stop)
        mine = Preparation(
            settings,
            source=_place(source, hashed, is_regularisation=False),
            regularisation="" if regularisation is None else _place(regularisation, hashed, is_regularisation=True),
            contents=frozenset(digest for _, digest, problem in hashed if not problem),
        )
        yield Gathered(found, hashed, mine)


def _hashed(entries: Sequence[Entry], progress: Progress, should_stop: Callable[[], bool]) -> list[Hashed]:
    """Read every source once for its hash."""
    hashed: list[Hashed] = []
    for entry, (digest, problem) in zip(entries, ordered_map(content_hash, entries, should_stop=should_stop), strict=True):
        hashed.append((entry, digest, problem))
        progress(len(hashed), len(entries), "reading")
    return hashed


def _place(source: Source, hashed: Sequence[Hashed], *, is_regularisation: bool) -> str:
    """What ``source`` is known by. A batch has no place but its content."""
    if isinstance(source, Path):
        return place_of(source)
    mine = [(entry, digest) for entry, digest, _ in hashed if entry.is_regularisation == is_regularisation]
    return batch([text for entry, digest in mine for text in (entry.name, digest, entry.caption or "")])


@contextmanager
def _unpacking(
    out_root: Path, sources: Sequence[Source | None], should_stop: Callable[[], bool], waiting: Callable[[], None]
) -> Iterator[Path]:
    """A folder below ``out_root`` to unpack archives into, removed afterwards. Only archives make it; one process has it at a time."""
    archives = [str(source.resolve()) for source in sources if isinstance(source, Path) and source.is_file() and is_archive(source)]
    folder = out_root / f"{WORK}-{hashlib.sha256(json.dumps(archives).encode()).hexdigest()[:12]}"
    if not archives:
        yield folder
        return
    with can_be_made(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for left in out_root.glob(f"{WORK}-*"):  # by a process that was killed
        with suppress(Cancelled, OSError), locked(left, lambda: True, lambda: None):
            shutil.rmtree(left, ignore_errors=True)
    try:
        with locked(folder, should_stop, waiting):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _find(
    source: Source, written: Sequence[Path], unpack_to: Path, settings: PrepareSettings, inside: Sequence[Path],
    should_stop: Callable[[], bool], what: str = "source",
) -> Found:  # fmt: skip
    """What ``source`` holds. ``written``: datasets of this name, which are not read where they lie inside the source."""
    if not isinstance(source, Path):
        return sources.from_images(source)
    if not source.exists():
        raise UserError(f"The {what} {source} does not exist.", "Check the name; give a folder, a zip or tar archive.", kind="dataset")
    captions, lines = settings.captions, settings.training.wildcards
    if source.is_dir():
        skip = [folder for folder in written if folder.resolve() != source.resolve()]
        return sources.from_folder(source, captions, lines=lines, skip=skip, inside=inside)
    if source.is_file() and is_archive(source):
        unpacked = unpack(source, unpack_to / f"unpacked-{what}", captions=captions.extensions, should_stop=should_stop)
        found = sources.from_folder(unpacked.folder, captions, lines=lines, read_ours=True)
        found.rejected += unpacked.rejected
        found.warnings += sources.unread(unpacked.others, captions.extensions)
        return found
    if source.suffix.lower() in EXTENSIONS:
        return sources.from_file(source, captions, lines=lines)
    raise UserError(f"{source} is neither a folder nor a zip or tar archive.", "Give the folder that holds the pictures.", kind="dataset")


def _as_regularisation(entry: Entry) -> Entry:
    return replace(entry, name=f"{REGULARISATION}/{entry.name}", is_regularisation=True)
