"""Tags of captions, their lines and sections, the trigger word, and how often each tag occurs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from ...config.prepare_sections import TrainingHints, TriggerPosition
from ...core.prompt_syntax import has_word, unescape

SEPARATOR = str(TrainingHints.model_fields["keep_tokens_separator"].default)
# a part between commas; a choice such as {blue eyes, smile|red eyes} is one
_PART = re.compile(r"(?:\{[^{}|]*\|[^{}]*\}|[^,])+")

WILDCARD = re.compile(r"\{[^{}|]*\|[^{}]*\}")


def split_tags(caption: str) -> list[str]:
    """The comma-separated parts of a caption, without empty ones. ``\\,`` has no special meaning, as in sd-scripts."""
    return [tag for tag in (" ".join(part.split()) for part in _PART.findall(caption)) if tag]


def instance_prompt(trigger: str, class_description: str) -> str:
    """``trigger class``, the instance prompt of DreamBooth."""
    return " ".join(part for part in (trigger, class_description) if part)


def sections(caption: str, edit: Callable[[list[list[str]]], list[list[str]]], separator: str = SEPARATOR) -> str:
    """``caption`` with ``edit`` applied to each line; it gets and returns the tags of the sections of the line.

    A line has one section, or up to three with separators between them: kept in front, shuffled, kept at the end.
    """
    lines = []
    for line in caption.split("\n"):
        parts = line.split(separator, 2) if separator else [line]
        lines.append(f" {separator} ".join(", ".join(tags) for tags in edit([split_tags(part) for part in parts])).strip())
    return "\n".join(line for line in lines if line)


def with_trigger(caption: str, trigger: str, position: TriggerPosition = "front", separator: str = SEPARATOR) -> str:
    """The caption with ``trigger`` as its first tag and no other. Case makes no difference, as in CLIP's tokenizer.

    Only whole tags are compared: ``miku`` does not match ``miku (cosplay)``, ``hatsune miku`` or words of a sentence. A caption that begins
    with ``trigger class`` has the trigger word already. With ``position`` "keep", a caption that has the word anywhere is unchanged.
    """

    def edit(parts: list[list[str]]) -> list[list[str]]:
        if not trigger or (position == "keep" and any(has_word(tag, trigger) for tags in parts for tag in tags)):
            return parts
        rest = [[tag for tag in tags if not _same(tag, trigger)] for tags in parts]
        head = parts[0][0] if parts[0] else ""
        if rest[0] and rest[0][0] == head and (led := _after_trigger(head, trigger)):
            return [[f"{trigger} {led}", *rest[0][1:]], *rest[1:]]
        return [[trigger, *rest[0]], *rest[1:]]

    return sections(caption, edit, separator) or trigger


def tag_frequency(captions: Iterable[str], separator: str = SEPARATOR) -> dict[str, int]:
    r"""The number of captions with each tag, most frequent first, then alphabetical. ``saber \(fate\)`` counts as ``saber (fate)``."""
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(unique([unescape(tag) for tag in tags_of(caption, separator)]))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def plain_frequency(captions: Iterable[str]) -> Counter[str]:
    """The number of captions with each tag in the form of ``plain``."""
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update({plain(tag) for tag in tags_of(caption)})
    return counts


def tags_of(caption: str, separator: str = SEPARATOR) -> list[str]:
    """All tags of a caption, in every line and section."""
    joined_up = caption.replace("\n", ",")
    return split_tags(joined_up.replace(separator, ",") if separator else joined_up)


def unique(tags: Iterable[str]) -> list[str]:
    """Tags without repetition, compared by ``plain``; the first occurrence is kept."""
    seen: set[str] = set()
    kept: list[str] = []
    for tag in tags:
        if plain(tag) not in seen:
            seen.add(plain(tag))
            kept.append(tag)
    return kept


def join_tags(*parts: str) -> str:
    """The parts of a caption that are not empty, joined with commas."""
    return ", ".join(part.strip(" ,") for part in parts if part.strip(" ,"))


def plain(tag: str) -> str:
    """A tag for comparison, without differences of case, underscores, and backslashes before brackets."""
    return " ".join(unescape(tag).casefold().replace("_", " ").split())


def _same(tag: str, trigger: str) -> bool:
    return " ".join(unescape(tag).split()).casefold() == unescape(trigger).casefold()


def _after_trigger(tag: str, trigger: str) -> str:
    """The class in ``trigger class``; empty for any other tag, such as ``trigger (cosplay)``."""
    start = re.match(rf"{re.escape(trigger)} +(?!\\?\()", tag, re.IGNORECASE)
    return tag[start.end() :] if start else ""


__all__: Sequence[str] = (
    "SEPARATOR", "WILDCARD", "instance_prompt", "join_tags", "plain", "plain_frequency", "sections", "split_tags", "tag_frequency",
    "tags_of", "unique", "with_trigger",
)  # fmt: skip
