"""Duplicates: which of several identical files stays, and how it gets the caption of one that is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ....core.counting import plural
from ...report.summary import Rejection
from ..candidates import Candidate

_MAX_NAMES = 20  # in a warning


def without_duplicates(candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[Rejection], list[str]]:
    """(candidates that stay, rejections, warnings). Of identical files, the first with a caption stays, or the first."""
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.key, []).append(candidate)
    best = {key: min(group, key=lambda candidate: candidate.entry.caption is None) for key, group in groups.items()}
    left_out = [candidate for candidate in candidates if candidate is not best[candidate.key]]
    rejected = [
        Rejection(candidate.entry.name, "duplicate", f"the same file as {best[candidate.key].entry.name}") for candidate in left_out
    ]
    warnings = _conflicts([(candidate, best[candidate.key]) for candidate in left_out])
    return [candidate for candidate in candidates if candidate is best[candidate.key]], rejected, warnings


def take_captions_of_duplicates(
    candidates: Sequence[Candidate], duplicates: Sequence[tuple[Candidate, Candidate]]
) -> tuple[list[Candidate], list[str]]:
    """(candidates, warnings): a candidate without a caption gets that of a duplicate. ``duplicates``: (left out, the one that stays)."""
    givers: dict[str, Candidate] = {}
    for left_out, stays in duplicates:
        if left_out.entry.caption and not stays.entry.caption:
            givers.setdefault(stays.key, left_out)
    captioned = {
        candidate.key: _with_caption_of(candidate, givers[candidate.key]) if candidate.key in givers else candidate
        for candidate in candidates
    }
    warnings = _conflicts([(left_out, captioned.get(stays.key, stays)) for left_out, stays in duplicates])
    if givers:
        names = [f"{giver.entry.name} to {captioned[key].entry.name}" for key, giver in givers.items() if key in captioned]
        warnings.append(f"{plural(len(names), 'caption')} of a duplicate that was left out went to the image that stays: {_listed(names)}.")
    return [captioned[candidate.key] for candidate in candidates], warnings


def _with_caption_of(candidate: Candidate, giver: Candidate) -> Candidate:
    entry = replace(candidate.entry, caption=giver.entry.caption, caption_from=f"{giver.entry.caption_from} of a duplicate")
    return replace(candidate, entry=entry)


def _conflicts(pairs: Sequence[tuple[Candidate, Candidate]]) -> list[str]:
    """Warnings about duplicates whose caption or repeats differ from those of the image that stays. ``pairs``: (left out, stays)."""
    warnings: list[str] = []
    for what, differs in (("caption", _other_caption), ("number of repeats", _other_repeats)):
        names = [f"{left_out.entry.name} and {stays.entry.name}" for left_out, stays in pairs if differs(left_out, stays)]
        if names:
            warnings.append(f"{plural(len(names), 'duplicate')} had another {what} than the image that stays: {_listed(names)}.")
    return warnings


def _listed(names: Sequence[str]) -> str:
    return "; ".join(names[:_MAX_NAMES]) + (f"; and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else "")


def _other_caption(left_out: Candidate, stays: Candidate) -> bool:
    if left_out.entry.caption is None:
        return stays.entry.caption is None and left_out.entry.instance != stays.entry.instance
    return left_out.entry.caption != stays.entry.caption


def _other_repeats(left_out: Candidate, stays: Candidate) -> bool:
    return left_out.entry.repeats != stays.entry.repeats
