"""What a run will do when it starts: it was trained already, resumes, continues an earlier run, or starts from the beginning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..config.run_config import RunConfig
from ..config.sections.optimizer import LENGTH_DEPENDENT
from ..core.counting import plural
from ..core.errors import UserError
from ..core.files.paths import safe_name
from ..core.messages import Message, Setting, join_messages
from ..runs import events, states
from ..runs.lineage import EarlierRun, earlier_runs, longest_finished, take_over
from ..runs.run_folder import RunFolder
from .prepared_run import PreparedRun

_MOST_NAMED = 5  # settings in a message


@dataclass(frozen=True)
class Outlook:
    """``step`` is the last one that is already trained, of ``steps``; ``run`` is the name of the run folder that it is taken from."""

    kind: Literal["finished", "resumes", "continues", "starts"]
    step: int
    steps: int
    run: str
    message: str
    why: str = ""  # why it starts although a run of this name exists


def outlook(run: PreparedRun) -> Outlook:
    """What ``launcher.train`` will do with ``run``. Reads no saved state: one that turns out to be damaged changes the answer."""
    folder, steps = run.folder, run.steps
    if folder.finished() is not None:
        return Outlook("finished", steps, steps, folder.path.name, "These settings are trained already: the finished LoRA is used.")
    if candidates := earlier_states(run):
        newest = candidates[0]
        return Outlook("continues", newest.step, steps, newest.run.path.name, describe_continuation(run, newest))
    if own := states.newest_step(folder.checkpoints):
        return Outlook("resumes", own, steps, folder.path.name, f"The training resumes at step {own} of {steps}.")
    return starts_new(steps, _why_new(run))


def starts_new(steps: int, why: str = "") -> Outlook:
    """The outlook of a run of ``steps`` that nothing precedes; ``why``: a sentence about it."""
    start = f"The training starts from the beginning ({plural(steps, 'step')})."
    return Outlook("starts", 0, steps, "", join_messages(" ", [start, why] if why else [start]), why)


def earlier_states(run: PreparedRun) -> list[EarlierRun]:
    """The states of other runs that ``run`` can continue from and that are newer than its own, the newest first."""
    return earlier_runs(run.folder, run.lineage, run.steps, length_matters=run.config.length_matters)


def continue_earlier(run: PreparedRun, on_event: Callable[[events.Event], None] = lambda event: None) -> None:
    """Take over the newest undamaged state of another run that ``run`` can continue from, if there is one, and report that.

    The caller holds the lock of the run, whose folder exists.
    """
    candidates = {earlier: describe_continuation(run, earlier) for earlier in earlier_states(run)}
    if (taken := take_over(run.folder, candidates)) is not None:
        on_event(taken)


def describe_continuation(run: PreparedRun, earlier: EarlierRun) -> Message:
    """Where ``run`` continues, and whether the result is that of a run with its settings from the start."""
    config = run.config
    start = f"The training continues from step {earlier.step} of {earlier.run.path.name} and ends at step {run.steps}"
    if not config.length_matters:
        return Message(f"{start}, with the same result as if it had these settings from the start.")
    if earlier.steps == run.steps:
        return Message(f"{start}, as planned for that run, too: its schedule stays the same.")
    if config.optimizer.schedule not in LENGTH_DEPENDENT:
        share = Setting("training.text_encoder_share")
        return Message(f"{start}. ", share, " now counts for the longer run, so the result differs from that of a new run.")
    return Message(
        f"{start}. The schedule {config.optimizer.schedule} now ends there, too: from the next step on, the learning rate is the one that "
        f"the schedule over {run.steps} steps has. Steps before followed the schedule over {earlier.steps} steps, so the result differs "
        "from that of a new run."
    )


def extended_config(run: PreparedRun, epochs: int) -> RunConfig:
    """The configuration of ``run`` with ``epochs`` more than the longest finished run of its lineage. Raises UserError without one."""
    end = longest_finished(run.folder, run.lineage)
    if end is None:
        raise UserError(
            "No finished run with these settings was found, so there is nothing to extend.",
            Message("Train first, or set ", Setting("training.epochs"), "."),
            kind="config",
        )
    steps = end.step + epochs * end.steps_per_epoch
    whole = steps % end.steps_per_epoch == 0
    length = {"epochs": -(-steps // end.steps_per_epoch), "max_steps": 0 if whole else steps}
    return run.config.model_copy(update={"training": run.config.training.model_copy(update=length)})


def _why_new(run: PreparedRun) -> str:
    """Which settings keep ``run`` from continuing the last run of the same name; empty if there is none."""
    last = _last_of_the_name(run)
    if last is None:
        return ""
    changed = _changed(run.config.lineage(), last)
    if not changed:
        return ""
    settings = join_messages(", ", [Setting(key) for key in changed[:_MOST_NAMED]])
    more = f" and {len(changed) - _MOST_NAMED} more" if len(changed) > _MOST_NAMED else ""
    verb = "differs" if len(changed) == 1 else "differ"
    return Message("It cannot continue the last run of this name, in which ", settings, f"{more} {verb}.")


def _last_of_the_name(run: PreparedRun) -> dict[str, Any] | None:
    """The configuration, as plain data, of the last run that was started under the name of ``run``."""
    pattern = f"{safe_name(run.config.name, limit=60)}-*"
    runs = [found for folder in run.folder.path.parent.glob(pattern) if (found := RunFolder(folder, run.config.name)).config.is_file()]
    for earlier in sorted(runs, key=lambda each: _changed_at(each.config), reverse=True):
        data = earlier.read_config()
        if data.get("name") == run.config.name:
            return data
    return None


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _changed(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The keys of ``ours`` whose values differ in ``theirs``."""
    keys: list[str] = []
    for name, value in ours.items():
        other = theirs.get(name)
        if isinstance(value, Mapping) and not prefix:
            keys += _changed(value, other if isinstance(other, Mapping) else {}, f"{name}.")
        elif value != other:
            keys.append(f"{prefix}{name}")
    return keys
