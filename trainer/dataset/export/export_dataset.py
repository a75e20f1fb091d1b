"""The one entry to the exports: which formats there are, and the folder that one is written to."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from ...core.errors import UserError
from ...core.messages import File, Message
from ..layout import EXPORT_MARKER
from ..manifest.items import Dataset
from .imagefolder import write_imagefolder
from .kohya import write_kohya

Format = Literal["kohya", "imagefolder"]
FORMATS: tuple[str, ...] = get_args(Format)
_WRITERS: dict[str, Callable[[Dataset, Path], None]] = {"kohya": write_kohya, "imagefolder": write_imagefolder}


def export_dataset(dataset: Dataset, kind: Format, out: Path | None = None) -> Path:
    """Write the dataset for another trainer and return the folder (default: beside the dataset, ``<name>-<kind>``).

    An earlier export in that folder is replaced. Raises UserError for an unknown format and for a folder that holds anything else.

    - ``kohya``: ``img/10_trigger class/`` and ``reg/…`` with captions, and ``dataset.toml`` for ``--dataset_config``.
      Masks become the alpha channel of the images, which kohya's ``alpha_mask`` reads.
    - ``imagefolder``: images and ``metadata.jsonl`` with the column ``text``, for ``datasets`` and the scripts of diffusers.
      The format has no regularisation images, masks or repeats: the first two are left out, the last is a column.
    """
    if kind not in _WRITERS:
        raise UserError(f"There is no export format {kind!r}.", f"Choose one of: {', '.join(FORMATS)}.", kind="dataset")
    folder = out if out is not None else dataset.path.parent / f"{dataset.path.name}-{kind}"
    _replace_earlier_export(folder)
    _WRITERS[kind](dataset, folder)
    return folder


def _replace_earlier_export(folder: Path) -> None:
    """Empty ``folder`` except for the marker. It stays throughout, so that an export can be repeated after a kill."""
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / EXPORT_MARKER
    if not marker.is_file() and any(folder.iterdir()):
        raise UserError(
            Message(File(str(folder)), " exists and is not an earlier export."), "Choose another folder, or delete it.", kind="dataset"
        )
    marker.write_text("Written by AnimeLoRA; replaced by the next export.\n", encoding="utf-8")
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path != marker:
            path.unlink()
