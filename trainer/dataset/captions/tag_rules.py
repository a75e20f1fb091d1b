"""Rules for tags: replace, remove and order them, and report the rules that matched nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from ...config.prepare_sections import CaptionSettings
from ...core.messages import DatasetSetting, Message
from ...core.prompt_syntax import unescape
from .tags import SEPARATOR, plain, sections, split_tags, unique


class TagPatterns:
    r"""Tags to match. A rule may have several tags with commas between them; ``*`` stands for any text (``\*`` for itself).

    Case, underscores, and backslashes before brackets make no difference.
    """

    def __init__(self, rules: Iterable[str]) -> None:
        self._whole: dict[str, str] = {}
        self._patterns: list[tuple[re.Pattern[str], str]] = []
        self.matched: set[str] = set()
        for rule in rules:
            for tag in split_tags(rule):
                self._whole.setdefault(plain(tag.replace(r"\*", "*")), rule)
                parts = re.split(r"(?<!\\)\*", tag)
                if len(parts) > 1:
                    body = ".*".join(re.escape(_squeezed(part.replace(r"\*", "*"))) for part in parts)
                    self._patterns.append((re.compile(body, re.DOTALL), rule))

    def match(self, tag: str) -> str | None:
        """The first rule that matches ``tag``, or None."""
        name = plain(tag)
        rule = self._whole.get(name)
        if rule is None:
            rule = next((rule for pattern, rule in self._patterns if pattern.fullmatch(name)), None)
        if rule is not None:
            self.matched.add(rule)
        return rule


class TagRules:
    """The tag rules of one preparation."""

    def __init__(self, settings: CaptionSettings, separator: str = SEPARATOR) -> None:
        self._settings = settings
        self._separator = separator
        self._remove = TagPatterns(settings.remove)
        self._replace = TagPatterns(settings.replace)
        self._rank = {plain(tag): place for place, tag in enumerate(tag for rule in settings.first for tag in split_tags(rule))}

    def edit(self, caption: str, frequency: Counter[str] | None = None) -> str:
        """``caption`` with its tags replaced, removed, without repetitions and in order. Tags that no rule matches stay unchanged.

        Lines and sections (``sections``) stay apart. ``frequency``: how often each tag occurs in the dataset, for
        ``order = "frequency"`` (most frequent first).
        """
        return sections(caption, lambda parts: self._edit(parts, frequency), self._separator)

    def unmatched(self) -> list[str]:
        """Warnings about rules that matched no tag; call it after ``edit`` for every caption."""
        warnings: list[str] = []
        for name, rules, patterns in (
            ("remove", self._settings.remove, self._remove),
            ("replace", list(self._settings.replace), self._replace),
        ):
            idle = [repr(rule) for rule in rules if rule not in patterns.matched and split_tags(rule)]
            if idle:
                shown = ", ".join(idle[:5]) + (f" and {len(idle) - 5} more" if len(idle) > 5 else "")
                setting = DatasetSetting(f"captions.{name}")
                warnings.append(Message(setting, f" matched no tag: {shown}. Check the spelling; a rule is a whole tag, or a part with *."))
        return warnings

    def _edit(self, parts: list[list[str]], frequency: Counter[str] | None) -> list[list[str]]:
        edited = [[new for tag in tags for new in self._replaced(tag)] for tags in parts]
        kept = unique_across([[tag for tag in tags if self._remove.match(tag) is None] for tags in edited])
        for tags in kept:
            if self._settings.order == "alphabetical":
                tags.sort(key=plain)
            elif self._settings.order == "frequency" and frequency is not None:
                tags.sort(key=lambda tag: (-frequency[plain(tag)], plain(tag)))
            tags.sort(key=lambda tag: self._rank.get(plain(tag), len(self._rank)))
        return kept

    def _replaced(self, tag: str) -> list[str]:
        rule = self._replace.match(tag)
        return [tag] if rule is None else split_tags(self._settings.replace[rule])


def unique_across(parts: Sequence[Sequence[str]]) -> list[list[str]]:
    """The sections without repeated tags; the first occurrence is kept."""
    order = unique(tag for tags in parts for tag in tags)
    left = set(map(plain, order))
    result: list[list[str]] = []
    for tags in parts:
        mine = [tag for tag in unique(tags) if plain(tag) in left]
        left -= set(map(plain, mine))
        result.append(mine)
    return result


def _squeezed(part: str) -> str:
    """Like ``plain``, but spaces at the ends stay, because they belong to the pattern."""
    return re.sub(r"[\s_]+", " ", unescape(part).casefold())


__all__: Sequence[str] = ("TagPatterns", "TagRules", "unique_across")
