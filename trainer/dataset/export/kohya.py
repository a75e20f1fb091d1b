"""Export for kohya's sd-scripts: folders named ``<repeats>_<prompt>`` and a ``dataset.toml``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ...config.prepare_sections import TrainingHints
from ...config.prepare_settings import PrepareSettings, bucket_rules, bucket_sides, parse_settings
from ...core.files.image_file import load_image
from ...core.files.paths import safe_name
from ...core.files.writing import write_atomic
from ...core.prompt_syntax import unescape
from ...core.work.progress import report_progress
from ..captions.tags import instance_prompt
from ..loading.kohya_captions import fixed_caption
from ..manifest.items import Dataset, Item


def write_kohya(dataset: Dataset, folder: Path) -> None:
    """Write one image folder for each number of repeats, and ``dataset.toml``, below ``folder``."""
    settings = parse_settings(dataset.settings)
    subsets: list[dict[str, Any]] = []
    done = 0
    for (regularisation, repeats), items in _groups(dataset.items):
        tokens = dataset.class_description if regularisation else instance_prompt(dataset.trigger, dataset.class_description)
        name = f"{repeats}_{safe_name(tokens, fallback='pictures', limit=80)}"
        image_dir = folder / ("reg" if regularisation else "img") / name
        image_dir.mkdir(parents=True)
        for item in items:
            report_progress("exporting images", done, len(dataset.items))
            _write_image(dataset, item, image_dir)
            done += 1
        subsets.append(_subset(image_dir, repeats, tokens, items, dataset.training))
    lines = ["# For kohya's trainers: --dataset_config dataset.toml"]
    if any(item.is_regularisation for item in dataset.items):
        lines.append(f"# and, for the weight of the regularisation images: --prior_loss_weight {settings.regularisation_weight:g}")
    lines += ["", "[[datasets]]", *_toml(_bucket_options(dataset, settings))]
    for subset in subsets:
        lines += ["", "[[datasets.subsets]]", *_toml(subset)]
    write_atomic(folder / "dataset.toml", "\n".join(lines) + "\n")


def _subset(image_dir: Path, repeats: int, tokens: str, items: Sequence[Item], hints: TrainingHints) -> dict[str, Any]:
    """One ``[[datasets.subsets]]`` table. ``tokens``: the prompt of images without a caption file."""
    subset: dict[str, Any] = {
        "image_dir": str(image_dir.resolve()), "num_repeats": repeats, "class_tokens": tokens, "caption_extension": ".txt",
        "shuffle_caption": hints.shuffle_caption, "keep_tokens": hints.keep_tokens, "flip_aug": hints.flip,
        "caption_dropout_rate": hints.caption_dropout, "caption_tag_dropout_rate": hints.tag_dropout,
    }  # fmt: skip
    if hints.keep_tokens_separator and any(hints.keep_tokens_separator in item.caption for item in items):
        subset["keep_tokens_separator"] = hints.keep_tokens_separator
    if hints.wildcards:
        subset["enable_wildcard"] = True
    if not tokens:
        del subset["class_tokens"]
    if items[0].is_regularisation:
        subset["is_reg"] = True
    if any(item.mask for item in items):
        subset["alpha_mask"] = True
    return subset


def _bucket_options(dataset: Dataset, settings: PrepareSettings) -> dict[str, Any]:
    """The options of ``[[datasets]]``: resolution and buckets."""
    buckets = bucket_rules(settings)
    if settings.shape == "auto" and all(item.width == item.height for item in dataset.items):
        buckets = None
    options: dict[str, Any] = {"resolution": dataset.resolution, "enable_bucket": buckets is not None}
    if buckets is not None:
        low, high = bucket_sides(settings)
        options |= {
            "min_bucket_reso": low, "max_bucket_reso": high,
            "bucket_reso_steps": buckets.step, "bucket_no_upscale": buckets.no_upscale,
        }  # fmt: skip
    return options


def _write_image(dataset: Dataset, item: Item, image_dir: Path) -> None:
    name = PurePosixPath(item.file).name
    mask = dataset.mask_path(item)
    if mask is None:
        shutil.copyfile(dataset.image_path(item), image_dir / name)
    else:
        masked = load_image(dataset.image_path(item))
        masked.putalpha(load_image(mask, "L"))
        masked.save(image_dir / name)
    if caption := _caption(item, dataset.training):  # sd-scripts stops at an empty caption file
        write_atomic(image_dir / f"{PurePosixPath(name).stem}.txt", caption + "\n")


def _caption(item: Item, hints: TrainingHints) -> str:
    """The caption for sd-scripts, which reads backslashes as text and removes separators only where it shuffles or drops tags."""
    changes_tags = hints.shuffle_caption or hints.tag_dropout
    return unescape(item.caption) if hints.wildcards or changes_tags else fixed_caption(item, hints)


def _groups(items: Iterable[Item]) -> list[tuple[tuple[bool, int], list[Item]]]:
    """Items by (is regularisation, repeats), in that order."""
    groups: dict[tuple[bool, int], list[Item]] = {}
    for item in items:
        groups.setdefault((item.is_regularisation, item.repeats), []).append(item)
    return sorted(groups.items())


def _toml(values: dict[str, Any]) -> list[str]:
    # strings, numbers and booleans of JSON are valid TOML
    return [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
