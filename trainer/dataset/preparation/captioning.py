"""Captions of the prepared images: from the source, the tagger or the instance prompt, edited by the rules, written beside them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...config.prepare_settings import PrepareSettings
from ...core.counting import plural
from ...core.errors import UserError
from ...core.files.writing import write_atomic
from ...core.messages import File, Message
from ...core.work.parallel import ordered_map
from ..captions.caption_text import one_line, read_caption_text
from ..captions.tag_rules import TagRules
from ..captions.tags import instance_prompt, join_tags, plain_frequency, sections, split_tags, with_trigger
from ..images.process import ProcessedImage
from ..layout import caption_file
from .candidates import Candidate
from .earlier_runs.previous_run import Edit, PreviousRun
from .preparation_progress import Progress

WRITERS = 8  # threads, because writing waits for the disk
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f]")


@dataclass(frozen=True)
class CaptionResult:
    """``prepared``: the caption that the settings give. ``final``: the one in the file, which the user may have edited.

    ``encoding`` is that of an edited file that is not UTF-8, else empty.
    """

    prepared: str
    final: str
    origin: str
    encoding: str = ""


def caption_images(
    kept: Sequence[tuple[Candidate, ProcessedImage]],
    folder: Path,
    settings: PrepareSettings,
    previous: PreviousRun,
    edits: Mapping[str, Edit],
    progress: Progress,
    should_stop: Callable[[], bool] | None,
) -> list[CaptionResult]:
    """Make all captions and write those that are missing or not up to date. ``edits``: see ``PreviousRun.edits``.

    Raises UserError for a caption file that cannot be read or written, and Cancelled.
    """
    tags = _tags(kept, folder, settings, progress, should_stop)
    sources = [_source_caption(candidate, tags.get(candidate.key), settings) for candidate, _ in kept]
    rules = TagRules(settings.captions, settings.training.keep_tokens_separator)
    frequency: Counter[str] | None = None
    if settings.captions.order == "frequency":
        frequency = plain_frequency(text for text, _ in sources)
    prepared = {
        caption_file(candidate.relative_target): _edited_by_rules(text, candidate, settings, rules, frequency)
        for (candidate, _), (text, _) in zip(kept, sources, strict=True)
    }
    previous.warnings += rules.unmatched()
    previous.will_write(prepared)

    def write(one: tuple[tuple[str, str], tuple[str, str]]) -> CaptionResult:
        (file, caption), (_, origin) = one
        final, encoding = _write_unless_edited(folder, file, caption, previous, edits.get(file))
        origin = origin if final == caption else "edited by hand"
        return CaptionResult(caption, final if settings.training.wildcards else one_line(final), origin, encoding)

    results = list(ordered_map(write, zip(prepared.items(), sources, strict=True), workers=WRITERS, should_stop=should_stop))
    _note_carried_edits(dict(zip(prepared, (result.final for result in results), strict=True)), edits, previous)
    return results


def _note_carried_edits(finals: Mapping[str, str], edits: Mapping[str, Edit], previous: PreviousRun) -> None:
    """Note in ``previous`` which edited captions have a new file now; warn about those whose image may be another one."""
    carried = {file: edit for file, edit in edits.items() if finals.get(file) in (edit.text, one_line(edit.text))}
    previous.carried |= {edit.file for edit in carried.values()}
    unsure = [file for file, edit in carried.items() if not edit.sure]
    if unsure:
        previous.warnings.append(
            f"{plural(len(unsure), 'caption')} edited by hand went to a changed image of the same name, for example {unsure[0]}: "
            "check that they still fit."
        )


def _source_caption(candidate: Candidate, tags: str | None, settings: PrepareSettings) -> tuple[str, str]:
    """(caption before the rules, where it comes from)."""
    entry, source = candidate.entry, settings.captions.source
    own = entry.caption if source in ("auto", "sidecar", "sidecar+tags") else None
    if source == "sidecar+tags" and own and tags:
        return "\n".join(join_tags(line, tags) for line in own.split("\n")), f"{entry.caption_from} and tagger"
    if own:
        return own, entry.caption_from
    if tags:
        return tags, "tagger"
    if entry.is_regularisation:
        return entry.instance or settings.class_description, "class"
    if entry.instance and source != "instance":
        return entry.instance, "folder name"
    return instance_prompt(settings.trigger, settings.class_description), "instance prompt"


def _edited_by_rules(text: str, candidate: Candidate, settings: PrepareSettings, rules: TagRules, frequency: Counter[str] | None) -> str:
    captions, separator = settings.captions, settings.training.keep_tokens_separator
    edited = rules.edit(_CONTROL.sub("", text), frequency)
    if candidate.entry.is_regularisation:
        return edited  # the class as the model knows it, without the trigger word
    if captions.prefix or captions.suffix:
        prefix, suffix = split_tags(captions.prefix), split_tags(captions.suffix)

        def add(parts: list[list[str]]) -> list[list[str]]:
            parts = [[*prefix, *parts[0]], *parts[1:]]
            return [*parts[:-1], [*parts[-1], *suffix]]

        edited = sections(edited, add, separator)
    return with_trigger(edited, settings.trigger, captions.trigger_position, separator)


def _tags(
    kept: Sequence[tuple[Candidate, ProcessedImage]],
    folder: Path,
    settings: PrepareSettings,
    progress: Progress,
    should_stop: Callable[[], bool] | None,
) -> dict[str, str]:
    """Tags of the images that need them, by the candidate's key."""
    if settings.tagger is None or settings.captions.source in ("instance", "sidecar"):
        return {}
    untagged = [(candidate, result) for candidate, result in kept if settings.captions.source != "auto" or not candidate.entry.caption]
    if not untagged:
        return {}
    from ..captions.tagger import tag_images

    images = {candidate.key: (candidate.target, result.sha256) for candidate, result in untagged}
    return tag_images(images, folder, settings.tagger, settings.captions, progress, should_stop)


def _write_unless_edited(folder: Path, file: str, prepared: str, previous: PreviousRun, edit: Edit | None) -> tuple[str, str]:
    """(caption in the file afterwards, its encoding if it had to be guessed). A file that the user edited is left as it is."""
    path = folder / file
    present: str | None
    try:
        present, guessed = read_caption_text(path)
    except FileNotFoundError:
        present, guessed = None, ""
    except OSError as error:
        raise UserError(
            Message("The caption ", File(str(path)), f" cannot be read ({error.strerror or error})."),
            "Check its permissions, or delete it.",
            kind="dataset",
        ) from error
    if present is not None and not previous.wrote(file, present):
        return present, guessed
    final = edit.text if edit is not None else prepared
    if present != final or guessed:
        try:
            write_atomic(path, final + "\n")
        except OSError as error:  # a full disk, a folder of that name
            raise UserError(
                Message("The caption ", File(str(path)), f" cannot be written: {error.strerror or error}."),
                "Make room on the disk, or remove what is in its place. Finished images are kept.",
                kind="dataset",
            ) from error
    return final, ""
