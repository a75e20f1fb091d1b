"""Warnings about a prepared dataset that a user should read before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ...config.prepare_settings import PrepareSettings, bucket_rules
from ...core.counting import plural
from ...core.messages import DatasetSetting, Message
from ...core.prompt_syntax import EMPHASIS
from ..captions.caption_text import encoding_warning
from ..captions.tags import WILDCARD, instance_prompt
from ..images.process import BELOW_BORDER, MASK_NOT_USED
from ..layout import caption_file
from ..manifest.items import Dataset, Row
from .captioning import CaptionResult

_CUT_TOP = 0.02  # of the height; less comes from rounding
_FEW_IMAGES = 5
_WIDE = 1.25  # aspect ratio from which a square crop loses a fifth of the image


def warnings_for(dataset: Dataset, rows: Sequence[Row], captions: Sequence[CaptionResult], settings: PrepareSettings) -> list[str]:
    """Warnings, the most important first. ``rows`` and ``captions``: one for each image of ``dataset``."""
    warnings: list[str] = []
    trained = [item for item in dataset.items if not item.is_regularisation]
    if not settings.trigger:
        warnings.append("There is no trigger word: the LoRA will change every image. Choose a rare word such as 'mystyle1'.")
    if len(trained) < _FEW_IMAGES:
        warnings.append(f"Only {plural(len(trained), 'image')}: a LoRA needs about 10 to 50 varied images.")
    warnings += _cut_tops(rows)
    warnings += _unused_masks(rows)
    warnings += _caption_origins(rows, captions, settings)
    warnings += _encodings(rows, captions)
    empty = sum(not item.caption for item in trained)
    if empty:
        verb = "has" if empty == 1 else "have"
        warnings.append(f"{plural(empty, 'image')} {verb} an empty caption.")
    warnings += _kohya_syntax([item.caption for item in dataset.items], settings)
    warnings += _sizes(rows, settings)
    return warnings


def _caption_origins(rows: Sequence[Row], captions: Sequence[CaptionResult], settings: PrepareSettings) -> list[str]:
    """Captions that come from elsewhere than the user may expect."""
    warnings = []
    origins = Counter(caption.origin for caption, row in zip(captions, rows, strict=True) if not row.item.is_regularisation)
    without = origins["instance prompt"]
    if settings.captions.source != "instance" and without:
        warnings.append(_without_caption(without, of=sum(not row.item.is_regularisation for row in rows), settings=settings))
    if origins["folder name"] and settings.class_description:
        warnings.append(
            f"{plural(origins['folder name'], 'image')} had no caption and got the name of their folder, not the class "
            f"{settings.class_description!r}. To use the class, take captions from the instance prompt."
        )
    if edited := origins["edited by hand"]:
        verb = "was" if edited == 1 else "were"
        warnings.append(
            f"{plural(edited, 'caption')} edited by hand in the dataset's folder {verb} kept; delete the .txt file to undo the edit."
        )
    return warnings


def _without_caption(count: int, *, of: int, settings: PrepareSettings) -> str:
    prompt = instance_prompt(settings.trigger, settings.class_description)
    got = f"the instance prompt {prompt!r}" if prompt else "an empty one"
    if count == of and of > 1:
        return (
            f"No image has a caption: all {of} got {got}. Captions are read from text files with the names of the images, "
            "metadata.jsonl, and the JSON files of gallery-dl, waifuc, Hydrus and kohya; a tagger can write them, too."
        )
    own = " of their own" if settings.captions.source in ("sidecar", "sidecar+tags") else ""
    return f"{plural(count, 'image')} of {of} had no caption{own} and got {got}."


def _encodings(rows: Sequence[Row], captions: Sequence[CaptionResult]) -> list[str]:
    files: dict[str, list[str]] = {}
    for caption, row in zip(captions, rows, strict=True):
        if caption.encoding:
            files.setdefault(caption.encoding, []).append(caption_file(row.item.file))
    return [encoding_warning(encoding, names) for encoding, names in files.items()]


def _kohya_syntax(captions: Sequence[str], settings: PrepareSettings) -> list[str]:
    """Captions with syntax that kohya's reader interprets and these settings do not."""
    warnings: list[str] = []
    wildcards = [caption for caption in captions if WILDCARD.search(caption)]
    if wildcards and not settings.training.wildcards:
        verb = "has" if len(wildcards) == 1 else "have"
        warnings.append(
            Message(
                f"{plural(len(wildcards), 'caption')} {verb} choices in braces, for example {wildcards[0][:60]!r}. They are trained as "
                "plain text. To choose one of them each time, as kohya's enable_wildcard does, set ",
                DatasetSetting("training.wildcards"),
                ".",
            )
        )
    emphasised = [caption for caption in captions if EMPHASIS.search(caption)]
    if emphasised:
        verb = "has" if len(emphasised) == 1 else "have"
        warnings.append(
            f"{plural(len(emphasised), 'caption')} {verb} emphasis such as (word:1.2), for example {emphasised[0][:60]!r}. It is trained "
            "as plain text, because brackets have no meaning in captions."
        )
    return warnings


def _sizes(rows: Sequence[Row], settings: PrepareSettings) -> list[str]:
    warnings: list[str] = []
    sizes = [row.item.original_size for row in rows]
    cut = sum(max(width / height, height / width) > _WIDE for width, height in sizes) if settings.crop != "none" else 0
    if cut and bucket_rules(settings) is None:
        verb = "loses" if cut == 1 else "lose"
        warnings.append(f"{plural(cut, 'image')} of {len(rows)} {verb} a fifth or more to the square crop. Buckets keep nearly all of it.")
    small = sum(min(size) * 2 < settings.resolution for size in sizes)
    if small and not (settings.buckets and settings.buckets.no_upscale):
        advice = "" if settings.upscaler else " An upscale model may do better."
        verb = "was" if small == 1 else "were"
        warnings.append(f"{plural(small, 'image')} {verb} enlarged more than 2×.{advice}")
    return warnings


def _cut_tops(rows: Sequence[Row]) -> list[str]:
    """Images that lost more of their top, where heads are, than an empty border."""
    cut = [(share, row) for row in rows if (share := _cut_top(row)) > _CUT_TOP and not any(BELOW_BORDER in step for step in row.steps)]
    if not cut:
        return []
    share, worst = max(cut, key=lambda pair: pair[0])
    advice = 'Buckets, or crop = "top" ("top" in Dataset Prep), keep it.'
    with_head = sum(any(step.startswith("crop face") for step in row.steps) for _, row in cut)
    if with_head:
        advice = f"In {with_head} of them a head was found and kept: look at the contact sheet." + f" {advice}" * (with_head < len(cut))
    return [
        f"The top is cut off in {plural(len(cut), 'image')} of {len(rows)}, most ({share:.0%} of the height) in {worst.source}: "
        f"heads may be missing. {advice}"
    ]


def _cut_top(row: Row) -> float:
    """The share of the image's height that the crop removes at the top."""
    item = row.item
    scaled_height = item.original_size[1] * max(item.width / item.original_size[0], item.height / item.original_size[1])
    return item.crop_top_left[0] / scaled_height


def _unused_masks(rows: Sequence[Row]) -> list[str]:
    unused = [(row.source, step) for row in rows for step in row.steps if step.startswith(MASK_NOT_USED)]
    return [
        f"{plural(len(unused), 'mask')} not used: the whole image is trained. For example that of {source}: {step.partition(': ')[2]}."
        for source, step in unused[:1]
    ]
