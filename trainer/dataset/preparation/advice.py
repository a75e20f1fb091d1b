"""What a user should know about a dataset before training on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...core.counting import plural
from ...core.prompt_syntax import EMPHASIS
from ..captions.caption_text import guessed_note
from ..captions.tags import WILDCARD, instance_prompt
from ..images.process import BELOW_BORDER, MASK_NOT_USED
from ..layout import caption_file
from ..manifest.items import Dataset, Row
from ..settings import PrepareSettings, bucket_rules

if TYPE_CHECKING:
    from .captioning import Captioned

_TOP = 0.02  # of the height: less is rounding


def warnings_for(dataset: Dataset, rows: Sequence[Row], captioned: Sequence[Captioned], settings: PrepareSettings) -> list[str]:
    """Sentences, most important first."""
    found: list[str] = []
    instances = [item for item in dataset.items if not item.is_regularisation]
    if not settings.trigger:
        found.append("There is no trigger word: the LoRA will change every picture. Choose a rare word such as 'mystyle1'.")
    if len(instances) < 5:
        found.append(f"Only {plural(len(instances), 'picture')}: a LoRA needs about 10 to 50 varied ones.")
    found += _cut_tops(rows)
    found += _unused_masks(rows)
    origins = Counter(caption.origin for caption, row in zip(captioned, rows, strict=True) if not row.item.is_regularisation)
    fallback = origins["instance prompt"]
    if settings.captions.source != "instance" and fallback:
        asked = settings.captions.source in ("sidecar", "sidecar+tags")
        found.append(_fallback(fallback, len(instances), asked, instance_prompt(settings.trigger, settings.class_description)))
    if origins["folder name"] and settings.class_description:
        found.append(
            f"{plural(origins['folder name'], 'image')} had no caption and got the name of their folder, not the class "
            f"{settings.class_description!r}. For the class, let captions come from the instance prompt."
        )
    if origins["edited by hand"]:
        found.append(
            f"{plural(origins['edited by hand'], 'caption')} edited by hand in the dataset's folder and kept; delete the .txt file to undo."
        )
    guessed: dict[str, list[str]] = {}
    for caption, row in zip(captioned, rows, strict=True):
        if caption.encoding:
            guessed.setdefault(caption.encoding, []).append(caption_file(row.item.file))
    found += [guessed_note(encoding, names) for encoding, names in guessed.items()]
    empty = sum(not item.caption for item in instances)
    if empty:
        found.append(f"{plural(empty, 'picture')} with an empty caption.")
    found += _syntax([item.caption for item in dataset.items], settings)
    found += _sizes(rows, settings)
    return found


def _fallback(count: int, of: int, asked: bool, prompt: str) -> str:
    got = f"the instance prompt {prompt!r}" if prompt else "an empty one"
    if count == of and of > 1:
        return (
            f"No image has a caption: all {of} got {got}. Captions are read from text files of the images' names, "
            "metadata.jsonl, and the JSON files of gallery-dl, waifuc, Hydrus and kohya; a tagger can write them, too."
        )
    own = " of their own" if asked else ""
    return f"{plural(count, 'image')} of {of} had no caption{own} and got {got}."


def _syntax(captions: Sequence[str], settings: PrepareSettings) -> list[str]:
    """What kohya's reader gives a meaning that these settings do not."""
    found = []
    wildcards = [caption for caption in captions if WILDCARD.search(caption)]
    if wildcards and not settings.training.wildcards:
        found.append(
            f"{plural(len(wildcards), 'caption')} with choices in braces, for example {wildcards[0][:60]!r}: trained as written. "
            "To have one chosen each time, as by kohya's enable_wildcard, set training.wildcards."
        )
    emphasised = [caption for caption in captions if EMPHASIS.search(caption)]
    if emphasised:
        found.append(
            f"{plural(len(emphasised), 'caption')} with emphasis such as (word:1.2), for example {emphasised[0][:60]!r}: trained as "
            "written, because brackets are text in captions."
        )
    return found


def _sizes(rows: Sequence[Row], settings: PrepareSettings) -> list[str]:
    found: list[str] = []
    sizes = [row.item.original_size for row in rows]
    cut = sum(max(width / height, height / width) > 1.25 for width, height in sizes) if settings.crop != "none" else 0
    if cut and bucket_rules(settings) is None:
        lose = "loses" if cut == 1 else "lose"
        found.append(f"{plural(cut, 'image')} of {len(rows)} {lose} a fifth or more to the square crop. Buckets keep nearly all of it.")
    small = sum(min(size) * 2 < settings.resolution for size in sizes)
    if small and not (settings.buckets and settings.buckets.no_upscale):
        advice = "" if settings.upscaler else " An upscale model may do better."
        verb = "was" if small == 1 else "were"
        found.append(f"{plural(small, 'image')} {verb} enlarged more than 2×.{advice}")
    return found


def _cut_tops(rows: Sequence[Row]) -> list[str]:
    """How many images lost their top, where heads are; an empty border does not count."""
    cut = [(share, row) for row in rows if (share := _cut_top(row)) > _TOP and not any(BELOW_BORDER in step for step in row.steps)]
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


def _unused_masks(rows: Sequence[Row]) -> list[str]:
    unused = [(row.source, step) for row in rows for step in row.steps if step.startswith(MASK_NOT_USED)]
    return [
        f"{plural(len(unused), 'mask')} not used: the whole image is trained. For example that of {source}: {step.partition(': ')[2]}."
        for source, step in unused[:1]
    ]


def _cut_top(row: Row) -> float:
    """The share of the image's height that the crop leaves out above."""
    item = row.item
    scaled = item.original_size[1] * max(item.width / item.original_size[0], item.height / item.original_size[1])
    return item.crop_top_left[0] / scaled
