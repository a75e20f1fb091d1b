"""The folder that a preparation writes to: the same source with the same settings finds its folder again, others get a new one.

The first preparation of a name is ``<trigger>_<class>``, the others are ``<trigger>_<class>-<8 hex digits>``.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ....config.prepare_settings import PrepareSettings, dataset_folder
from ....core.errors import UserError
from ....core.files.paths import require_short_path
from ....core.messages import File, Message
from ...layout import FOLDERS, HEADER, JOURNAL, MASKS, REGULARISATION, ROWS, WORK, caption_file
from .identity import RECORD, PreparationIdentity, header_or_empty, json_lines
from .journal import locked
from .tidy import remove_partials

WRITTEN_CAPTIONS, TAGS = "captions.jsonl", "tags.json"  # in WORK: see previous_run.py and tagger.py
_LONGEST_NAME = f"{'x' * 71}.png"  # of Candidate.file


@contextmanager
def output_folder(
    out_root: Path,
    source: object,
    identity: PreparationIdentity,
    should_stop: Callable[[], bool],
    waiting: Callable[[], None],
    *,
    replace_other: bool,
) -> Iterator[tuple[Path, list[str]]]:
    """(the folder of ``identity``, locked; warnings). ``replace_other``: the folder without a number, whatever is in it.

    Raises UserError when the folder cannot be made, or is ``source`` itself.
    """
    base = dataset_folder(out_root, identity.settings)
    while True:
        folder = base if replace_other else _choose_folder(out_root, identity)
        _make_folder(folder, source)
        try:
            with locked(folder, should_stop, waiting):
                if not replace_other and _choose_folder(out_root, identity) != folder:
                    continue  # another process took it in the meantime
                try:
                    yield folder, _begin(folder, out_root, identity)
                except UserError:
                    _remove_if_empty(folder)
                    raise
                return
        except UserError:
            _remove_folders_of_the_lock(folder)
            raise


def siblings(out_root: Path, settings: PrepareSettings) -> list[Path]:
    """The folders of all preparations with the name of ``settings``, the one without a number first."""
    base = dataset_folder(out_root, settings)
    numbered = sorted(Path(path) for path in glob.glob(f"{glob.escape(str(base))}-*"))
    return [path for path in (base, *numbered) if path.is_dir()]


@contextmanager
def folder_errors(folder: Path) -> Iterator[None]:
    """Raise UserError for a folder that cannot be made: its name is not valid, or its parent is not writable."""
    try:
        yield
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise UserError(
            Message("The folder ", File(str(folder)), f" cannot be made: {cause}."), "Choose another folder.", kind="dataset"
        ) from error


def _choose_folder(out_root: Path, identity: PreparationIdentity) -> Path:
    """The folder that belongs to ``identity``; it may not exist yet."""
    for folder in siblings(out_root, identity.settings):
        if identity.owns(folder):
            return folder
    base = dataset_folder(out_root, identity.settings)
    candidates = [base, *(base.with_name(f"{base.name}-{identity.digest[:digits]}") for digits in range(8, 65, 8))]
    return next(folder for folder in candidates if _is_free(folder))


def _make_folder(folder: Path, source: object) -> None:
    with folder_errors(folder):
        if isinstance(source, Path) and source.resolve() == folder.resolve():
            raise UserError(
                Message(File(str(source)), " is the folder that the dataset would be written to."),
                "Choose another output folder or trigger word.",
                kind="dataset",
            )
        require_short_path(folder / REGULARISATION / _LONGEST_NAME)
        folder.mkdir(parents=True, exist_ok=True)


def _begin(folder: Path, out_root: Path, identity: PreparationIdentity) -> list[str]:
    """Tidy up, claim the folder, and start it from an earlier dataset of the same source; returns warnings."""
    remove_partials(folder)
    base, warnings = dataset_folder(out_root, identity.settings), []
    if folder != base and not (folder / WORK / RECORD).exists():
        warnings.append(f"{base.name} holds another dataset ({identity.differences(base)}). This one is in {folder}.")
    origin = _find_origin(folder, out_root, identity)
    identity.claim(folder)
    if origin is not None:
        _start_from(origin, folder)
        warnings.append(f"This dataset is new. It reuses finished images and hand-edited captions of {origin.name}.")
    return warnings


def _find_origin(folder: Path, out_root: Path, identity: PreparationIdentity) -> Path | None:
    """For a new ``folder``: the newest finished preparation of the same source, whose images and edits it starts with."""
    if not _is_free(folder):
        return None
    related = [
        path for path in siblings(out_root, identity.settings) if path != folder and header_or_empty(path) and identity.is_related(path)
    ]
    return max(related, key=lambda path: (path / HEADER).stat().st_mtime_ns, default=None)


def _start_from(origin: Path, folder: Path) -> None:
    """Copy what was prepared in ``origin``; images are hard links where the file system has them.

    The journal comes last: until then the folder counts as new, so that a killed process leaves no folder that looks finished.
    """
    for name in (f"{WORK}/{WRITTEN_CAPTIONS}", f"{WORK}/{TAGS}", ROWS):
        _copy(origin / name, folder / name)
    ours = _written_names(origin)
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
        except OSError:  # another disk, or a file system without hard links
            pass
    shutil.copyfile(source, target)


def _written_names(folder: Path) -> set[str]:
    """Names of the images, masks and captions that this program wrote in ``folder``."""
    rows = (row for name in (ROWS, f"{WORK}/{JOURNAL}") for row in json_lines(folder / name))
    images = {str(row[key]).rsplit("/", 1)[-1] for row in rows for key in ("file", "mask") if row.get(key)}
    return images | {caption_file(name) for name in images}


def _is_free(folder: Path) -> bool:
    """Whether nothing was prepared in ``folder``: no manifest, and no image in the journal of a stopped run."""
    if (folder / HEADER).exists():
        return False
    return not any(row.get("file") for row in json_lines(folder / WORK / JOURNAL))


def _remove_if_empty(folder: Path) -> None:
    """Remove the folder of a preparation that failed before it made an image; it holds only our work folder then."""
    work = folder / WORK
    if [path for path in folder.iterdir() if path != work] or [path for path in work.glob("*") if path.is_dir() and any(path.iterdir())]:
        return
    shutil.rmtree(folder, ignore_errors=True)


def _remove_folders_of_the_lock(folder: Path) -> None:
    """Remove what ``_remove_if_empty`` leaves on Windows, which keeps the folders of a file that is open."""
    for path in (folder / WORK, folder):
        with suppress(OSError):  # they hold something
            path.rmdir()
