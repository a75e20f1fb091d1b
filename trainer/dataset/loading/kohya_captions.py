"""Caption syntax of kohya's sd-scripts: several lines, choices in braces, separators around the tags that may be shuffled."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ...config.prepare_sections import TrainingHints
from ...core.prompt_syntax import unescape
from ..manifest.items import Item

_CHOICE = re.compile(r"\{([^}]+)\}")


def fixed_caption(item: Item, hints: TrainingHints) -> str:
    """The caption without any random change: all tags in order; with wildcards the first line and the first part of each choice."""
    caption = choose_variant(item.caption, lambda choices: choices[0]) if hints.wildcards else item.caption
    if hints.keep_tokens_separator and hints.keep_tokens_separator in caption:
        kept, rest, last = tag_sections(caption, hints)
        caption = ", ".join(kept + rest + last)
    return unescape(caption)


def choose_variant(caption: str, choose: Callable[[Sequence[str]], str]) -> str:
    """One line of ``caption`` with one part of each ``{a|b}``, as ``choose`` selects them; ``{{`` and ``}}`` stand for braces."""
    line = choose(caption.split("\n")) if "\n" in caption else caption
    line = line.replace("{{", "\1").replace("}}", "\2")
    closed, brace, rest = line.rpartition("}")  # behind the last brace, each open one would be searched to the end of the line
    line = _CHOICE.sub(lambda match: choose(match[1].split("|")), closed + brace) + rest
    return line.replace("\1", "{").replace("\2", "}")


def tag_sections(caption: str, hints: TrainingHints) -> tuple[list[str], list[str], list[str]]:
    """(tags that stay in front, tags that may be shuffled, tags that stay at the end)."""
    separator = hints.keep_tokens_separator
    if separator and separator in caption:
        parts = [[tag.strip() for tag in part.split(",") if tag.strip()] for part in caption.split(separator, 2)]
        return parts[0], parts[1], parts[2] if len(parts) > 2 else []
    tags = [tag.strip() for tag in caption.split(",")]
    return tags[: hints.keep_tokens], tags[hints.keep_tokens :], []
