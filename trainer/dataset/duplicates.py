"""Which of several equal files stays, and what the others knew that it does not."""

from __future__ import annotations

from collections.abc import Sequence

from .jobs import Job
from .report import Rejection, plural


def without_duplicates(jobs: Sequence[Job]) -> tuple[list[Job], list[Rejection], list[str]]:
    """(jobs that stay, rejections, warnings): of equal files the first with a caption stays, else the first."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.key, []).append(job)
    best = {key: min(group, key=lambda job: job.entry.caption is None) for key, group in groups.items()}
    left_out = [job for job in jobs if job is not best[job.key]]
    rejected = [Rejection(job.entry.name, "duplicate", f"the same file as {best[job.key].entry.name}") for job in left_out]
    warnings: list[str] = []
    for what, differs in (("caption", _other_caption), ("number of repeats", _other_repeats)):
        others = [job for job in left_out if differs(job, best[job.key])]
        if others:
            warnings.append(
                f"{plural(len(others), 'duplicate')} had another {what} than the same file that stays, for example "
                f"{others[0].entry.name} and {best[others[0].key].entry.name}."
            )
    return [job for job in jobs if job is best[job.key]], rejected, warnings


def _other_caption(job: Job, stays: Job) -> bool:
    if job.entry.caption is None:
        return stays.entry.caption is None and job.entry.instance != stays.entry.instance
    return job.entry.caption != stays.entry.caption


def _other_repeats(job: Job, stays: Job) -> bool:
    return job.entry.repeats != stays.entry.repeats
