"""Captions: the trigger word in front exactly once, tags replaced, removed and ordered, and how often each occurs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from .settings import CaptionSettings


def split_tags(caption: str) -> list[str]:
    """The comma-separated parts of a caption, without empty ones. ``\\,`` is not special: kohya splits at every comma, too."""
    return [tag for tag in (" ".join(part.split()) for part in caption.split(",")) if tag]


def instance_prompt(trigger: str, class_description: str) -> str:
    """``trigger class``, DreamBooth's instance prompt."""
    return " ".join(part for part in (trigger, class_description) if part)


def edit_tags(caption: str, settings: CaptionSettings, frequency: Counter[str] | None = None) -> str:
    """Replace, remove and order tags. A caption that no rule concerns keeps its words and order.

    ``frequency`` is the tag table of the whole set, for ``order = "frequency"`` (most frequent first).
    """
    replace = {_plain(old): new for old, new in settings.replace.items()}
    remove = {_plain(tag) for tag in settings.remove}
    tags: list[str] = []
    for tag in split_tags(caption):
        tags += split_tags(replace.get(_plain(tag), tag))
    tags = unique(tag for tag in tags if _plain(tag) not in remove)
    if settings.order == "alphabetical":
        tags.sort(key=_plain)
    elif settings.order == "frequency" and frequency is not None:
        tags.sort(key=lambda tag: (-frequency[_plain(tag)], _plain(tag)))
    if settings.first:
        rank = {_plain(tag): place for place, tag in enumerate(settings.first)}
        tags.sort(key=lambda tag: rank.get(_plain(tag), len(rank)))
    return ", ".join(tags)


def with_trigger(caption: str, trigger: str) -> str:
    """The caption with ``trigger`` in front and nowhere else (whole words, any case: CLIP's tokenizer ignores case)."""
    caption = " ".join(caption.split()).strip(" ,")
    if not trigger:
        return caption
    pattern = re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)", re.IGNORECASE)
    start = pattern.match(caption)
    rest = caption[start.end() :] if start else caption
    # "trigger standing" goes on without a comma; anything else is set off by one
    joint = " " if start and rest.strip() and not rest.lstrip().startswith(",") else ", "
    rest = ", ".join(split_tags(pattern.sub("", rest)))
    return f"{trigger}{joint}{rest}" if rest else trigger


def tag_frequency(captions: Iterable[str]) -> dict[str, int]:
    """How many captions have each tag, most frequent first, ties in alphabetical order."""
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(unique(split_tags(caption)))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def plain_frequency(captions: Iterable[str]) -> Counter[str]:
    """The table that ``edit_tags`` orders by: case and underscores do not count."""
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update({_plain(tag) for tag in split_tags(caption)})
    return counts


def unique(tags: Iterable[str]) -> list[str]:
    """Tags without repetition, first occurrence kept; case and underscores do not count."""
    seen: set[str] = set()
    kept: list[str] = []
    for tag in tags:
        if _plain(tag) not in seen:
            seen.add(_plain(tag))
            kept.append(tag)
    return kept


def joined(*parts: str) -> str:
    """Non-empty caption parts joined with commas."""
    return ", ".join(part.strip(" ,") for part in parts if part.strip(" ,"))


def _plain(tag: str) -> str:
    return tag.casefold().replace("_", " ").strip()


__all__: Sequence[str] = (
    "edit_tags", "instance_prompt", "joined", "plain_frequency", "split_tags", "tag_frequency", "unique", "with_trigger",
)  # fmt: skip
