"""Which of several equal files stays, and what the others knew that it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...core.counting import plural
from ..report.summary import Rejection
from .candidates import Job


def without_duplicates(jobs: Sequence[Job]) -> tuple[list[Job], list[Rejection], list[str]]:
    """(jobs that stay, rejections, warnings): of equal files the first with a caption stays, else the first."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.key, []).append(job)
    best = {key: min(group, key=lambda job: job.entry.caption is None) for key, group in groups.items()}
    left_out = [job for job in jobs if job is not best[job.key]]
    rejected = [Rejection(job.entry.name, "duplicate", f"the same file as {best[job.key].entry.name}") for job in left_out]
    warnings = _conflicts([(job, best[job.key]) for job in left_out])
    return [job for job in jobs if job is best[job.key]], rejected, warnings


def with_captions_of_repeats(jobs: Sequence[Job], repeats: Sequence[tuple[Job, Job]]) -> tuple[list[Job], list[str]]:
    """(the jobs that stay, warnings): one without a caption gets that of a repeat. ``repeats``: (left out, the one that stays)."""
    given: dict[str, Job] = {}
    for left_out, stays in repeats:
        if left_out.entry.caption and not stays.entry.caption:
            given.setdefault(stays.key, left_out)
    now = {key: _captioned(job, given[key]) if key in given else job for key, job in ((job.key, job) for job in jobs)}
    warnings = _conflicts([(left_out, now.get(stays.key, stays)) for left_out, stays in repeats])
    if given:
        names = [f"{giver.entry.name} to {now[key].entry.name}" for key, giver in given.items() if key in now]
        warnings.append(f"{plural(len(names), 'caption')} of a duplicate that was left out went to the image that stays: {_listed(names)}.")
    return [now[job.key] for job in jobs], warnings


def _captioned(job: Job, giver: Job) -> Job:
    entry = replace(job.entry, caption=giver.entry.caption, caption_from=f"{giver.entry.caption_from} of a duplicate")
    return replace(job, entry=entry)


def _conflicts(pairs: Sequence[tuple[Job, Job]]) -> list[str]:
    """What those that are left out said otherwise than those that stay, by name. ``pairs``: (left out, stays)."""
    warnings: list[str] = []
    for what, differs in (("caption", _other_caption), ("number of repeats", _other_repeats)):
        names = [f"{job.entry.name} and {stays.entry.name}" for job, stays in pairs if differs(job, stays)]
        if names:
            warnings.append(f"{plural(len(names), 'duplicate')} had another {what} than the image that stays: {_listed(names)}.")
    return warnings


def _listed(names: Sequence[str]) -> str:
    return "; ".join(names[:20]) + (f"; and {len(names) - 20} more" if len(names) > 20 else "")


def _other_caption(job: Job, stays: Job) -> bool:
    if job.entry.caption is None:
        return stays.entry.caption is None and job.entry.instance != stays.entry.instance
    return job.entry.caption != stays.entry.caption


def _other_repeats(job: Job, stays: Job) -> bool:
    return job.entry.repeats != stays.entry.repeats
