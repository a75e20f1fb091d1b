"""Export as an imagefolder of Hugging Face's ``datasets``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path, PurePosixPath

from ...core.files.writing import write_atomic
from ...core.work.progress import track
from ..loading.kohya_captions import fixed_caption
from ..manifest.items import Dataset


def write_imagefolder(dataset: Dataset, folder: Path) -> None:
    """Write ``train/`` with images and ``metadata.jsonl`` below ``folder``; regularisation images are left out."""
    train = folder / "train"
    train.mkdir(parents=True)
    lines = []
    for item in track(dataset.items, "exporting images", len(dataset.items)):
        if item.is_regularisation:
            continue
        name = PurePosixPath(item.file).name
        shutil.copyfile(dataset.image_path(item), train / name)
        row = {"file_name": name, "text": fixed_caption(item, dataset.training), "repeats": item.repeats}
        lines.append(json.dumps(row, ensure_ascii=False))
    write_atomic(train / "metadata.jsonl", "\n".join(lines) + "\n")
