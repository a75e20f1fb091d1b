"""The dataset as other trainers read it: kohya's folders with a dataset.toml, or a Hugging Face imagefolder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from ..core.errors import UserError
from ..core.files.image_file import load_image
from ..core.files.paths import safe_name
from ..core.files.writing import write_atomic
from ..core.prompt_syntax import unescape
from ..core.work.progress import counted, report
from .caption_forms import fixed_caption
from .captions.tags import instance_prompt
from .dataset import Dataset, Item
from .settings import TrainingHints, bucket_rules, bucket_sides, parse_settings

Kind = Literal["kohya", "imagefolder"]
KINDS: tuple[str, ...] = get_args(Kind)
MARKER = ".animelora-export"


def export_dataset(dataset: Dataset, kind: Kind, out: Path | None = None) -> Path:
    """Write the dataset for another trainer and return the folder (default: beside the dataset, ``<name>-<kind>``).

    An earlier export there is replaced; a folder that is anything else is refused with UserError.

    - ``kohya``: ``img/10_trigger class/`` and ``reg/…`` with captions, and ``dataset.toml`` for ``--dataset_config``.
      Masks become the pictures' alpha channel, which kohya's ``alpha_mask`` reads.
    - ``imagefolder``: pictures and ``metadata.jsonl`` with the column ``text``, for ``datasets`` and the diffusers scripts.
      They know neither regularisation pictures nor masks nor repeats: the first two are left out, the last is a column.
    """
    writers: dict[str, Callable[[Dataset, Path], None]] = {"kohya": _kohya, "imagefolder": _imagefolder}
    if kind not in writers:
        raise UserError(f"There is no export named {kind!r}.", f"Choose one of: {', '.join(KINDS)}.", kind="dataset")
    folder = out if out is not None else dataset.path.parent / f"{dataset.path.name}-{kind}"
    _make_room(folder)
    writers[kind](dataset, folder)
    return folder


def _kohya(dataset: Dataset, folder: Path) -> None:
    settings = parse_settings(dataset.settings)
    prompt = instance_prompt(dataset.trigger, dataset.class_description)
    subsets: list[dict[str, Any]] = []
    done = 0
    for (regularisation, repeats), items in _groups(dataset.items):
        tokens = dataset.class_description if regularisation else prompt
        name = f"{repeats}_{safe_name(tokens, fallback='pictures', limit=80)}"
        place = folder / ("reg" if regularisation else "img") / name
        place.mkdir(parents=True)
        for item in items:
            report("exporting images", done, len(dataset.items))
            _kohya_picture(dataset, item, place)
            done += 1
        hints = dataset.training
        subset: dict[str, Any] = {
            "image_dir": str(place.resolve()), "num_repeats": repeats, "class_tokens": tokens, "caption_extension": ".txt",
            "shuffle_caption": hints.shuffle_caption, "keep_tokens": hints.keep_tokens, "flip_aug": hints.flip,
            "caption_dropout_rate": hints.caption_dropout, "caption_tag_dropout_rate": hints.tag_dropout,
        }  # fmt: skip
        if hints.keep_tokens_separator and any(hints.keep_tokens_separator in item.caption for item in items):
            subset["keep_tokens_separator"] = hints.keep_tokens_separator
        if hints.wildcards:
            subset["enable_wildcard"] = True
        if not tokens:
            del subset["class_tokens"]
        if regularisation:
            subset["is_reg"] = True
        if any(item.mask for item in items):
            subset["alpha_mask"] = True
        subsets.append(subset)
    low, high = bucket_sides(settings)
    buckets = bucket_rules(settings)
    if settings.shape == "auto" and all(item.width == item.height for item in dataset.items):
        buckets = None
    rules: dict[str, Any] = {"resolution": dataset.resolution, "enable_bucket": buckets is not None}
    if buckets is not None:
        rules |= {
            "min_bucket_reso": low, "max_bucket_reso": high,
            "bucket_reso_steps": buckets.step, "bucket_no_upscale": buckets.no_upscale,
        }  # fmt: skip
    lines = ["# For kohya's trainers: --dataset_config dataset.toml"]
    if any(item.is_regularisation for item in dataset.items):
        lines.append(f"# and, for the weight of the regularisation pictures: --prior_loss_weight {settings.regularisation_weight:g}")
    lines += ["", "[[datasets]]", *_toml(rules)]
    for subset in subsets:
        lines += ["", "[[datasets.subsets]]", *_toml(subset)]
    write_atomic(folder / "dataset.toml", "\n".join(lines) + "\n")


def _kohya_picture(dataset: Dataset, item: Item, place: Path) -> None:
    name = PurePosixPath(item.file).name
    mask = dataset.mask_path(item)
    if mask is None:
        shutil.copyfile(dataset.image_path(item), place / name)
    else:
        masked = load_image(dataset.image_path(item))
        masked.putalpha(load_image(mask, "L"))
        masked.save(place / name)
    if caption := _kohya_caption(item, dataset.training):  # kohya stops at an empty caption file
        write_atomic(place / f"{PurePosixPath(name).stem}.txt", caption + "\n")


def _kohya_caption(item: Item, hints: TrainingHints) -> str:
    """The caption as kohya's trainer is to read it: it takes backslashes for text, and removes separators only where it moves tags."""
    moves = hints.shuffle_caption or hints.tag_dropout
    return fixed_caption(item, hints) if not hints.wildcards and not moves else unescape(item.caption)


def _imagefolder(dataset: Dataset, folder: Path) -> None:
    place = folder / "train"
    place.mkdir(parents=True)
    rows = []
    for item in counted(dataset.items, "exporting images", len(dataset.items)):
        if item.is_regularisation:
            continue
        shutil.copyfile(dataset.image_path(item), place / PurePosixPath(item.file).name)
        row = {"file_name": PurePosixPath(item.file).name, "text": fixed_caption(item, dataset.training), "repeats": item.repeats}
        rows.append(json.dumps(row, ensure_ascii=False))
    write_atomic(place / "metadata.jsonl", "\n".join(rows) + "\n")


def _groups(items: Iterable[Item]) -> list[tuple[tuple[bool, int], list[Item]]]:
    groups: dict[tuple[bool, int], list[Item]] = {}
    for item in items:
        groups.setdefault((item.is_regularisation, item.repeats), []).append(item)
    return sorted(groups.items())


def _toml(values: dict[str, Any]) -> Sequence[str]:
    # JSON's strings, numbers and booleans are TOML's, too
    return [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]


def _make_room(folder: Path) -> None:
    if folder.exists():
        if not (folder / MARKER).is_file() and any(folder.iterdir()):
            raise UserError(
                f"{folder} exists and is no earlier export.", "Choose another folder with --export-to, or remove it.", kind="dataset"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARKER).write_text("Written by AnimeLoRA; replaced by the next export.\n", encoding="utf-8")
