"""Find the images of a source and hash them; an archive is unpacked while it is needed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ...config.prepare_settings import PrepareSettings
from ...core.errors import Cancelled, UserError
from ...core.messages import File, Message
from ...core.work.parallel import ordered_map
from ..images.decode import EXTENSIONS
from ..layout import REGULARISATION, WORK
from ..reading import sources
from ..reading.archive import is_archive, unpack
from ..reading.sources import Entry, SourceImage, SourceListing
from .candidates import content_hash
from .earlier_runs.identity import PreparationIdentity, batch_id, path_id
from .earlier_runs.journal import locked
from .earlier_runs.output_folder import folder_errors, siblings
from .preparation_progress import Progress

Source = Path | Sequence[SourceImage]
Hashed = tuple[Entry, str, str]  # a source image, its SHA-256, why it cannot be read


@dataclass(frozen=True)
class CollectedSources:
    """``hashed``: one for each entry of ``listing``, in its order."""

    listing: SourceListing
    hashed: list[Hashed]
    identity: PreparationIdentity


@contextmanager
def collected_sources(
    source: Source,
    regularisation: Source | None,
    out_root: Path,
    settings: PrepareSettings,
    inside: Sequence[Path],
    progress: Progress,
    should_stop: Callable[[], bool],
    waiting: Callable[[], None],
) -> Iterator[CollectedSources]:
    """The images of both sources. Unpacked archives exist until the end of the block; arguments as for ``prepare_dataset``.

    ``waiting`` is called when another process unpacks the same archive. Raises UserError and Cancelled.
    """
    with _unpack_folder(out_root, (source, regularisation), should_stop, waiting) as unpack_to:
        own_datasets = siblings(out_root, settings)
        listing = _list(source, own_datasets, unpack_to, settings, inside, should_stop).cleaned()
        if regularisation is not None:
            extra = _list(regularisation, own_datasets, unpack_to, settings, inside, should_stop, "regularisation").cleaned()
            listing.entries += [_as_regularisation(entry) for entry in extra.entries]
            listing.warnings += extra.warnings
            listing.rejected += extra.rejected
        hashed = _hash(listing.entries, progress, should_stop)
        identity = PreparationIdentity(
            settings,
            source=_source_id(source, hashed, is_regularisation=False),
            regularisation="" if regularisation is None else _source_id(regularisation, hashed, is_regularisation=True),
            contents=frozenset(digest for _, digest, problem in hashed if not problem),
        )
        yield CollectedSources(listing, hashed, identity)


def _hash(entries: Sequence[Entry], progress: Progress, should_stop: Callable[[], bool]) -> list[Hashed]:
    hashed: list[Hashed] = []
    for entry, (digest, problem) in zip(entries, ordered_map(content_hash, entries, should_stop=should_stop), strict=True):
        hashed.append((entry, digest, problem))
        progress(len(hashed), len(entries), "reading")
    return hashed


def _source_id(source: Source, hashed: Sequence[Hashed], *, is_regularisation: bool) -> str:
    """``path_id`` of a path; a batch is identified by its content."""
    if isinstance(source, Path):
        return path_id(source)
    mine = [(entry, digest) for entry, digest, _ in hashed if entry.is_regularisation == is_regularisation]
    return batch_id([text for entry, digest in mine for text in (entry.name, digest, entry.caption or "")])


@contextmanager
def _unpack_folder(
    out_root: Path, sources: Sequence[Source | None], should_stop: Callable[[], bool], waiting: Callable[[], None]
) -> Iterator[Path]:
    """A folder below ``out_root`` to unpack archives into, for one process at a time; it is made for archives only, and removed."""
    archives = [str(source.resolve()) for source in sources if isinstance(source, Path) and source.is_file() and is_archive(source)]
    folder = out_root / f"{WORK}-{hashlib.sha256(json.dumps(archives).encode()).hexdigest()[:12]}"
    if not archives:
        yield folder
        return
    with folder_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for leftover in out_root.glob(f"{WORK}-*"):  # of a process that was killed
        with suppress(Cancelled, OSError), locked(leftover, lambda: True, lambda: None):
            shutil.rmtree(leftover, ignore_errors=True)
    try:
        with locked(folder, should_stop, waiting):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _list(
    source: Source, own_datasets: Sequence[Path], unpack_to: Path, settings: PrepareSettings, inside: Sequence[Path],
    should_stop: Callable[[], bool], what: str = "source",
) -> SourceListing:  # fmt: skip
    """The images of ``source``. ``own_datasets``: datasets of this name, which are not read where they are inside the source."""
    if not isinstance(source, Path):
        return sources.from_images(source)
    if not source.exists():
        raise UserError(
            Message(f"The {what} ", File(str(source)), " does not exist."),
            "Check the name; give a folder, a zip or tar archive.",
            kind="dataset",
        )
    captions, lines = settings.captions, settings.training.wildcards
    if source.is_dir():
        skip = [folder for folder in own_datasets if folder.resolve() != source.resolve()]
        return sources.from_folder(source, captions, lines=lines, skip=skip, inside=inside)
    if source.is_file() and is_archive(source):
        unpacked = unpack(source, unpack_to / f"unpacked-{what}", captions=captions.extensions, should_stop=should_stop)
        listing = sources.from_folder(unpacked.folder, captions, lines=lines, read_ours=True)
        listing.rejected += unpacked.rejected
        listing.warnings += sources.unread_files_warning(unpacked.others, captions.extensions)
        return listing
    if source.suffix.lower() in EXTENSIONS:
        return sources.from_file(source, captions, lines=lines)
    raise UserError(
        Message(File(str(source)), " is neither a folder nor a zip or tar archive."),
        "Give the folder that holds the images.",
        kind="dataset",
    )


def _as_regularisation(entry: Entry) -> Entry:
    return replace(entry, name=f"{REGULARISATION}/{entry.name}", is_regularisation=True)
