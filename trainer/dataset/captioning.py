"""Every picture's caption: from its source, the tagger or the instance prompt, edited, written beside it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import write_atomic
from .captions import edit_tags, instance_prompt, joined, plain_frequency, with_trigger
from .dataset import ROWS, caption_file, read_caption
from .pool import ordered_map
from .settings import PrepareSettings

if TYPE_CHECKING:
    from .jobs import Job
    from .process import Processed


WRITERS = 8


@dataclass(frozen=True)
class Captioned:
    """``prepared`` is what the settings give; ``final`` differs when somebody edited the file by hand since."""

    prepared: str
    final: str
    origin: str


def caption_all(
    kept: Sequence[tuple[Job, Processed]],
    folder: Path,
    settings: PrepareSettings,
    progress: Callable[[int, int, str], None],
    should_stop: Callable[[], bool] | None,
) -> list[Captioned]:
    """Make and write all captions; files that are right already are left alone."""
    tags = _tags(kept, folder, settings, progress, should_stop)
    raw = [_raw(job, tags.get(job.key), settings) for job, _ in kept]
    frequency: Counter[str] | None = None
    if settings.captions.order == "frequency":
        frequency = plain_frequency(text for text, _ in raw)
    before = _captions_before(folder)

    def finish(one: tuple[tuple[Job, Processed], tuple[str, str]]) -> Captioned:
        (job, _), (text, origin) = one
        prepared = _finished(text, job, settings, frequency)
        file = caption_file(job.target.relative_to(folder).as_posix())
        final, edited = _write(folder / file, prepared, before.get(file))
        return Captioned(prepared, final, "edited by hand" if edited else origin)

    # many at a time, because each waits for the disk
    return list(ordered_map(finish, zip(kept, raw, strict=True), workers=WRITERS, should_stop=should_stop))


def _raw(job: Job, tags: str | None, settings: PrepareSettings) -> tuple[str, str]:
    """(caption before editing, where from)."""
    entry, source = job.entry, settings.captions.source
    own = entry.caption if source in ("auto", "sidecar", "sidecar+tags") else None
    if source == "sidecar+tags" and own and tags:
        return joined(own, tags), f"{entry.caption_from} and tagger"
    if own:
        return own, entry.caption_from
    if tags:
        return tags, "tagger"
    if entry.is_regularisation:
        return entry.instance or settings.class_description, "class"
    if entry.instance and not settings.class_description:
        return entry.instance, "folder name"
    return instance_prompt(settings.trigger, settings.class_description), "instance prompt"


def _finished(text: str, job: Job, settings: PrepareSettings, frequency: Counter[str] | None) -> str:
    rules = settings.captions
    edited = edit_tags(text, rules, frequency)
    if job.entry.is_regularisation:
        return edited  # the class as the model knows it, without the new word
    if rules.prefix or rules.suffix:
        edited = joined(rules.prefix, edited, rules.suffix)
    return with_trigger(edited, settings.trigger)


def _tags(
    kept: Sequence[tuple[Job, Processed]],
    folder: Path,
    settings: PrepareSettings,
    progress: Callable[[int, int, str], None],
    should_stop: Callable[[], bool] | None,
) -> dict[str, str]:
    """Tags by key for the pictures that need them."""
    if settings.tagger is None or settings.captions.source in ("instance", "sidecar"):
        return {}
    wanted = [(job, done) for job, done in kept if settings.captions.source != "auto" or not job.entry.caption]
    if not wanted:
        return {}
    from .tagger import tag_pictures

    return tag_pictures(
        {job.key: (job.target, done.sha256) for job, done in wanted}, folder, settings.tagger, settings.captions, progress, should_stop
    )


def _captions_before(folder: Path) -> dict[str, str]:
    """What the last finished run wrote, by caption file."""
    try:
        with (folder / ROWS).open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        return {caption_file(row["file"]): row["caption"] for row in rows}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _write(path: Path, prepared: str, before: str | None) -> tuple[str, bool]:
    """Write the caption unless the user changed the file since the last run: (caption in the file, changed by hand)."""
    try:
        present: str | None = read_caption(path)
    except OSError:
        present = None
    if present is not None and before is not None and present not in (before, prepared):
        return present, True
    if present != prepared:
        write_atomic(path, prepared + "\n")
    return prepared, False
