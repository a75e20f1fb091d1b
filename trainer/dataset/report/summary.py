"""What preparing did, for people (text) and for programs (JSON)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ...core.counting import plural

DECIDE = "To leave one out, delete it from the source or name it in clean.leave_out."


@dataclass(frozen=True)
class Rejection:
    """A source that was left out. ``reason`` is a stable word, ``message`` says more."""

    source: str
    reason: str
    message: str

    def to_json(self) -> dict[str, str]:
        """Plain data."""
        return {"source": self.source, "reason": self.reason, "message": self.message}


@dataclass(frozen=True)
class Doubt:
    """Two images that were kept though they look alike: ``sources`` are their names, ``files`` lie in the dataset's folder."""

    sources: tuple[str, str]
    files: tuple[str, str]
    why: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"sources": list(self.sources), "files": list(self.files), "why": self.why}


@dataclass(frozen=True)
class Report:
    """The result of preparing a dataset, without the pictures."""

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
    repeats_total: int  # images an epoch shows, repeats counted
    rejected: tuple[Rejection, ...] = ()
    buckets: dict[str, int] = field(default_factory=dict)
    source_sizes: dict[str, int] = field(default_factory=dict)  # "640x480" -> count
    formats: dict[str, int] = field(default_factory=dict)
    captions_from: dict[str, int] = field(default_factory=dict)
    tags: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    doubtful: tuple[Doubt, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """One JSON object; the keys are the field names, ``class_description`` is ``class``."""
        data = {name: getattr(self, name) for name in Report.__dataclass_fields__}
        data["class"] = data.pop("class_description")
        data["rejected"] = [rejection.to_json() for rejection in self.rejected]
        data["warnings"] = list(self.warnings)
        data["doubtful"] = [doubt.to_json() for doubt in self.doubtful]
        data["seconds"] = round(self.seconds, 3)
        return data

    def facts(self) -> list[str]:
        """Sentences about repeats and reuse, where there is something to say."""
        found = []
        if self.repeats_total != self.kept:
            found.append(f"{plural(self.repeats_total, 'image')} an epoch, with repeats")
        if self.reused:
            found.append(f"{self.reused} unchanged since the last run")
        return found

    def text(self) -> str:
        """A page of plain text."""
        lines = [f"Dataset {self.name}", f"{plural(self.kept, 'image')} in {self.path}"]
        if self.regularisation:
            lines.append(f"{self.regularisation} of them for regularisation")
        lines += self.facts()
        if self.masks:
            lines.append(f"{self.masks} with a loss mask")
        lines.append(f"Hash {self.hash[:16]}")
        lines += _section("Warnings", list(self.warnings))
        lines += _section("Sizes", [f"{size}: {count}" for size, count in _top(self.buckets)])
        lines += _section("Source sizes", [f"{size}: {count}" for size, count in _top(self.source_sizes)])
        lines += _section("Captions from", [f"{origin}: {count}" for origin, count in _top(self.captions_from)])
        lines += _section("Most frequent tags", [f"{tag}: {count}" for tag, count in _top(self.tags, 20)])
        if self.doubtful:
            lines += ["", f"Alike, and kept: {plural(len(self.doubtful), 'pair')}. {DECIDE}"]
            lines += [f"  {doubt.sources[0]} and {doubt.sources[1]}: {doubt.why}" for doubt in self.doubtful[:20]]
            if len(self.doubtful) > 20:
                lines.append(f"  … and {len(self.doubtful) - 20} more, in report.html")
        if self.rejected:
            reasons = Counter(rejection.reason for rejection in self.rejected)
            lines += ["", f"Left out: {len(self.rejected)} ({', '.join(f'{count} {reason}' for reason, count in reasons.most_common())})"]
            lines += [f"  {rejection.source}: {rejection.message}" for rejection in self.rejected[:50]]
            if len(self.rejected) > 50:
                lines.append(f"  … and {len(self.rejected) - 50} more, all in report.html")
        return "\n".join(lines) + "\n"


def _section(title: str, lines: list[str]) -> list[str]:
    return ["", f"{title}:", *(f"  {line}" for line in lines)] if lines else []


def _top(counts: dict[str, int], limit: int = 12) -> list[tuple[str, int]]:
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    rest = ordered[limit:]
    return ordered[:limit] + ([(f"{len(rest)} others", sum(count for _, count in rest))] if rest else [])
