"""Every picture's caption: from its source, the tagger or the instance prompt, edited, written beside it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.counting import plural
from ...core.errors import UserError
from ...core.files.writing import write_atomic
from ...core.work.parallel import ordered_map
from ..captions.caption_text import one_line, read_caption_text
from ..captions.tag_rules import TagRules
from ..captions.tags import instance_prompt, joined, plain_frequency, sections, split_tags, with_trigger
from ..layout import caption_file
from ..settings import PrepareSettings
from .previous_run import Earlier, Edit

if TYPE_CHECKING:
    from ..images.process import Processed
    from .candidates import Job


WRITERS = 8
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f]")


@dataclass(frozen=True)
class Captioned:
    """``prepared`` is what the settings give; ``final`` differs when somebody edited the file by hand since.

    ``encoding`` is the one in which an edited file was read when it is not UTF-8.
    """

    prepared: str
    final: str
    origin: str
    encoding: str = ""


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
    rules = TagRules(settings.captions, settings.training.keep_tokens_separator)
    frequency: Counter[str] | None = None
    if settings.captions.order == "frequency":
        frequency = plain_frequency(text for text, _ in raw)
    prepared = {
        caption_file(job.target.relative_to(folder).as_posix()): _finished(text, job, settings, rules, frequency)
        for (job, _), (text, _) in zip(kept, raw, strict=True)
    }
    earlier.notes += rules.unmatched()
    earlier.will_write(prepared)

    def finish(one: tuple[tuple[str, str], tuple[str, str]]) -> Captioned:
        (file, caption), (_, origin) = one
        final, encoding = _write(folder, file, caption, earlier, edits.get(file))
        edited = final != caption
        if not settings.training.wildcards:
            final = one_line(final)
        return Captioned(caption, final, "edited by hand" if edited else origin, encoding)

    # many at a time, because each waits for the disk
    done = list(ordered_map(finish, zip(prepared.items(), raw, strict=True), workers=WRITERS, should_stop=should_stop))
    finals = dict(zip(prepared, (one.final for one in done), strict=True))
    carried = {file: edit for file, edit in edits.items() if finals.get(file) in (edit.text, one_line(edit.text))}
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
        return "\n".join(joined(line, tags) for line in own.split("\n")), f"{entry.caption_from} and tagger"
    if own:
        return own, entry.caption_from
    if tags:
        return tags, "tagger"
    if entry.is_regularisation:
        return entry.instance or settings.class_description, "class"
    if entry.instance and source != "instance":
        return entry.instance, "folder name"
    return instance_prompt(settings.trigger, settings.class_description), "instance prompt"


def _finished(text: str, job: Job, settings: PrepareSettings, rules: TagRules, frequency: Counter[str] | None) -> str:
    captions, separator = settings.captions, settings.training.keep_tokens_separator
    edited = rules.edit(_CONTROL.sub("", text), frequency)
    if job.entry.is_regularisation:
        return edited  # the class as the model knows it, without the new word
    if captions.prefix or captions.suffix:
        prefix, suffix = split_tags(captions.prefix), split_tags(captions.suffix)

        def add(parts: list[list[str]]) -> list[list[str]]:
            parts = [[*prefix, *parts[0]], *parts[1:]]
            return [*parts[:-1], [*parts[-1], *suffix]]

        edited = sections(edited, add, separator)
    return with_trigger(edited, settings.trigger, captions.trigger_position, separator)


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
    from ..captions.tagger import tag_pictures

    return tag_pictures(
        {job.key: (job.target, done.sha256) for job, done in wanted}, folder, settings.tagger, settings.captions, progress, should_stop
    )


def _write(folder: Path, file: str, prepared: str, earlier: Earlier, edit: Edit | None) -> tuple[str, str]:
    """Write the caption unless the user changed the file. (the caption that is in it then, encoding if it had to be guessed)."""
    path = folder / file
    present: str | None
    try:
        present, guessed = read_caption_text(path)
    except FileNotFoundError:
        present, guessed = None, ""
    except OSError as error:
        raise UserError(
            f"The caption {path} cannot be read ({error.strerror or error}).", "Check its permissions, or delete it.", kind="dataset"
        ) from error
    if present is not None and not earlier.wrote(file, present):
        return present, guessed
    final = edit.text if edit is not None else prepared
    if present != final or guessed:
        try:
            write_atomic(path, final + "\n")
        except OSError as error:  # a full disk, a folder of that name
            raise UserError(
                f"The caption {path} cannot be written: {error.strerror or error}.",
                "Make room or remove what is in its place; what is done is kept.",
                kind="dataset",
            ) from error
    return final, ""
