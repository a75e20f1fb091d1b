"""The report on a preparation, as text for people and as JSON for programs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ...core.counting import plural
from ...core.messages import Action, Message, join_messages

HOW_TO_LEAVE_OUT = Message("To leave one out, ", Action.LEAVE_OUT_IMAGE, ".")
_MAX_COUNTS, _MAX_TAGS, _MAX_PAIRS, _MAX_REJECTED = 12, 20, 20, 50  # lines of each list


@dataclass(frozen=True)
class Rejection:
    """A source that was left out. ``reason`` is a short word that programs may rely on, ``message`` explains it."""

    source: str
    reason: str
    message: str

    def to_json(self) -> dict[str, str]:
        """Plain data."""
        return {"source": self.source, "reason": self.reason, "message": self.message}


@dataclass(frozen=True)
class SimilarPair:
    """Two images that look alike and were both kept. ``sources``: their names. ``files``: paths below the dataset's folder."""

    sources: tuple[str, str]
    files: tuple[str, str]
    why: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"sources": list(self.sources), "files": list(self.files), "why": self.why}


@dataclass(frozen=True)
class Report:
    """What a preparation made, left out and noticed, without the images themselves."""

    name: str
    path: str
    hash: str
    trigger: str
    class_description: str
    resolution: int
    kept: int
    regularisation: int
    reused: int
    masks: int
    repeats_total: int  # images in an epoch, with repeats
    balanced_total: int  # the same when training balances regularisation images with the others, as it does by default
    rejected: tuple[Rejection, ...] = ()
    buckets: dict[str, int] = field(default_factory=dict)
    source_sizes: dict[str, int] = field(default_factory=dict)  # "640x480" -> count
    formats: dict[str, int] = field(default_factory=dict)
    captions_from: dict[str, int] = field(default_factory=dict)
    tags: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    doubtful: tuple[SimilarPair, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """One JSON object; the keys are the field names, ``class_description`` is ``class``."""
        data = {name: getattr(self, name) for name in Report.__dataclass_fields__}
        data["class"] = data.pop("class_description")
        data["rejected"] = [rejection.to_json() for rejection in self.rejected]
        data["warnings"] = list(self.warnings)
        data["doubtful"] = [pair.to_json() for pair in self.doubtful]
        data["seconds"] = round(self.seconds, 3)
        return data

    def facts(self) -> list[str]:
        """Short statements about repeats, balance and reuse, where they apply."""
        facts = []
        if self.repeats_total != self.kept:
            facts.append(f"{plural(self.repeats_total, 'image')} an epoch, with repeats")
        if self.balanced_total != self.repeats_total:
            count = plural(self.balanced_total, "image")
            facts.append(f"{count} an epoch in training, which balances regularisation images with the others")
        if self.reused:
            facts.append(f"{self.reused} unchanged since the last run")
        return facts

    def text(self) -> str:
        """The report as a page of plain text."""
        lines: list[str] = [f"Dataset {self.name}", f"{plural(self.kept, 'image')} in {self.path}"]
        if self.regularisation:
            lines.append(f"{self.regularisation} of them for regularisation")
        lines += self.facts()
        if self.masks:
            lines.append(f"{self.masks} with a loss mask")
        lines.append(f"Hash {self.hash[:16]}")
        lines += self._rejected_lines()
        lines += _section("Warnings", list(self.warnings))
        lines += _section("Sizes", [f"{size}: {count}" for size, count in _top(self.buckets)])
        lines += _section("Source sizes", [f"{size}: {count}" for size, count in _top(self.source_sizes)])
        lines += _section("Captions from", [f"{origin}: {count}" for origin, count in _top(self.captions_from)])
        lines += _section("Most frequent tags", [f"{tag}: {count}" for tag, count in _top(self.tags, _MAX_TAGS)])
        lines += self._similar_lines()
        return Message(join_messages("\n", lines), "\n")

    def _similar_lines(self) -> list[str]:
        if not self.doubtful:
            return []
        lines: list[str] = ["", Message(f"Similar images that were kept: {plural(len(self.doubtful), 'pair')}. ", HOW_TO_LEAVE_OUT)]
        lines += [f"  {pair.sources[0]} and {pair.sources[1]}: {pair.why}" for pair in self.doubtful[:_MAX_PAIRS]]
        return lines + _rest(len(self.doubtful) - _MAX_PAIRS, "in report.html")

    def _rejected_lines(self) -> list[str]:
        if not self.rejected:
            return []
        reasons = Counter(rejection.reason for rejection in self.rejected)
        lines: list[str] = [
            "",
            f"Left out: {len(self.rejected)} ({', '.join(f'{count} {reason}' for reason, count in reasons.most_common())})",
        ]
        lines += [Message(f"  {rejection.source}: ", rejection.message) for rejection in self.rejected[:_MAX_REJECTED]]
        return lines + _rest(len(self.rejected) - _MAX_REJECTED, "all in report.html")


def _rest(count: int, where: str) -> list[str]:
    return [f"  … and {count} more, {where}"] if count > 0 else []


def _section(title: str, lines: list[str]) -> list[str]:
    return ["", f"{title}:", *(Message("  ", line) for line in lines)] if lines else []


def _top(counts: dict[str, int], limit: int = _MAX_COUNTS) -> list[tuple[str, int]]:
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    rest = ordered[limit:]
    return ordered[:limit] + ([(f"{len(rest)} others", sum(count for _, count in rest))] if rest else [])
