"""Every picture's caption: from its source, the tagger or the instance prompt, edited, written beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..files import write_atomic
from .captions import edit_tags, instance_prompt, joined, plain_frequency, with_trigger
from .dataset import caption_file, read_caption
from .earlier import Earlier, Edit
from .pool import ordered_map
from .report import plural
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
    earlier: Earlier,
    edits: Mapping[str, Edit],
    progress: Callable[[int, int, str], None],
    should_stop: Callable[[], bool] | None,
) -> list[Captioned]:
    """Make and write all captions; files that are right already are left alone. ``edits``: see ``Earlier.edits``."""
    tags = _tags(kept, folder, settings, progress, should_stop)
    raw = [_raw(job, tags.get(job.key), settings) for job, _ in kept]
    frequency: Counter[str] | None = None
    if settings.captions.order == "frequency":
        frequency = plain_frequency(text for text, _ in raw)
    prepared = {
        caption_file(job.target.relative_to(folder).as_posix()): _finished(text, job, settings, frequency)
        for (job, _), (text, _) in zip(kept, raw, strict=True)
    }
    earlier.will_write(prepared)

    def finish(one: tuple[tuple[str, str], tuple[str, str]]) -> Captioned:
        (file, caption), (_, origin) = one
        final = _write(folder, file, caption, earlier, edits.get(file))
        return Captioned(caption, final, origin if final == caption else "edited by hand")

    # many at a time, because each waits for the disk
    done = list(ordered_map(finish, zip(prepared.items(), raw, strict=True), workers=WRITERS, should_stop=should_stop))
    finals = dict(zip(prepared, (one.final for one in done), strict=True))
    carried = {file: edit for file, edit in edits.items() if finals.get(file) == edit.text}
    earlier.carried |= {edit.file for edit in carried.values()}
    unsure = [file for file, edit in carried.items() if not edit.sure]
    if unsure:
        earlier.notes.append(
            f"{plural(len(unsure), 'caption')} edited by hand went to a changed picture of the same name, for example {unsure[0]}: "
            "check that they still fit."
        )
    return done


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


def _write(folder: Path, file: str, prepared: str, earlier: Earlier, edit: Edit | None) -> str:
    """Write the caption unless the user changed the file: the caption that is in it then."""
    path = folder / file
    try:
        present: str | None = read_caption(path)
    except OSError:
        present = None
    if present is not None and not earlier.wrote(file, present):
        return present
    final = edit.text if edit is not None else prepared
    if present != final:
        try:
            write_atomic(path, final + "\n")
        except OSError as error:  # a full disk, a folder of that name
            raise UserError(
                f"The caption {path} cannot be written: {error.strerror or error}.",
                "Make room or remove what is in its place; what is done is kept.",
                kind="dataset",
            ) from error
    return final
