"""Train a run in this process: every outcome becomes an event and an exit status, and a stop saves the last complete step."""

from __future__ import annotations

import gc
import os
import threading
import time
import traceback
from contextlib import ExitStack, suppress
from pathlib import Path

from ..config import run_config
from ..core.diagnosis import diagnose, memory_hint
from ..core.disk_errors import exit_status_for
from ..core.errors import Cancelled, UserError
from ..core.files.locks import hold_lock
from ..core.messages import Message
from ..core.work.processes import current_process_group
from ..plan.memory_check import savings
from ..runs import events
from ..runs.run_folder import RunFolder
from ..runs.states import state_folder
from .event_writer import EventLog, NullEventLog, watch_parent
from .opened_run import OpenedRun
from .recipe import TrainingRecipe
from .requests import Requests
from .saving.checkpointer import Checkpointer

DONE, FAILED, STOPPED = 0, 1, 3
_SAVING_SECONDS = 600.0  # for a process that was asked to stop. Its parent ends it sooner, but may have been killed
_GRACE_SECONDS = 2.0  # that all processes but the first wait before they leave a run that ends early


def train_run(folder: Path, *, watch_stdin: bool) -> int:
    """Train the run in ``folder``; returns the exit status. The last event of the log is done, stopped or error."""
    config = run_config.load_config(folder / "config.json")
    run = RunFolder(folder, config.name)
    first = current_process_group().is_main
    # the other processes of a group would wait for a paused one until their patience ends
    requests = Requests(can_pause=current_process_group().world_size == 1)
    recipe: TrainingRecipe | None = None

    def on_stop() -> None:
        requests.stop()
        _exit_after(_SAVING_SECONDS)
        # a step may take longer than anyone waits: this thread saves between two steps, then ends the process
        if recipe is not None and first:
            save_and_exit(recipe)

    if watch_stdin:
        watch_parent(on_stop, requests.take_line if first else None)
    held = ExitStack()
    if first:
        try:  # if this process outlives its parent, the next start of the run waits for this lock
            held.enter_context(hold_lock(run.child_lock, requests.is_stopped, waiting=lambda: None))
        except Cancelled:
            return STOPPED
    emit = EventLog(run.events) if first else NullEventLog()
    try:
        emit(events.Phase("loading"))
        recipe = TrainingRecipe(run, config, emit, requests)
        _collect_garbage_from_here_on()
        recipe.train()
        return DONE
    except Cancelled:
        if recipe is not None:
            save_and_exit(recipe)
        emit(events.Stopped(0, ""))
        return STOPPED
    except Exception as error:  # every failure becomes an event with its cause and a hint
        failure = diagnose(error, folder) if recipe is None else explain_failure(error, folder, recipe.opened)
        with suppress(OSError):  # the log is on the disk, which may be full
            traceback.print_exc()
        if recipe is not None and failure.kind == "checkpoint":
            failure.hint = Message(failure.hint, " ", save_last_step(recipe))
        if not first:
            time.sleep(_GRACE_SECONDS)  # most often the first process fails for the same reason, and reports it
            emit = EventLog(run.events)
        try:
            emit(events.Error(failure.kind, failure.message, failure.hint))
        except OSError as unwritten:  # the parent learns the reason from the exit status
            return exit_status_for(error, unwritten) or FAILED
        return FAILED
    finally:
        with suppress(OSError):  # an event that could not be written is tried again here
            emit.close()
        held.close()


def _exit_after(seconds: float) -> None:
    """End this process after ``seconds``, whatever it is doing then."""
    timer = threading.Timer(seconds, os._exit, [FAILED])
    timer.daemon = True
    timer.start()


def save_and_exit(recipe: TrainingRecipe) -> None:
    """Save the last complete step and end the process. Can be called from any thread at any moment."""
    status, checkpointer, run = STOPPED, recipe.checkpointer, recipe.run
    if not recipe.writes:
        time.sleep(_GRACE_SECONDS)  # the first process saves and leaves, and the launcher then ends the others
        os._exit(status)
    if checkpointer is not None:
        recipe.emit(events.Phase(events.SAVING, checkpointer.step, recipe.plan.steps))  # after this event the parent waits longer
    with recipe.lock:
        try:
            if checkpointer is not None and checkpointer.saved_step < checkpointer.step:
                checkpointer.save_now()
            if checkpointer is not None:
                save_lora_of_state(recipe, checkpointer)
            step = recipe.opened.start.step if checkpointer is None else checkpointer.saved_step
            recipe.emit(events.Stopped(step, str(state_folder(run.checkpoints, step)) if step else ""))
        except Exception as error:  # nothing may keep a process alive that was asked to stop
            failure, status = diagnose(error, run.path), exit_status_for(error) or FAILED
            recipe.emit(events.Error(failure.kind, failure.message, failure.hint))
        finally:
            os._exit(status)


def save_lora_of_state(recipe: TrainingRecipe, checkpointer: Checkpointer) -> None:
    """Write the LoRA of the state that was saved. A failure is only a warning: the state is on disk, and the run can resume."""
    try:
        checkpointer.save_missing_lora()
    except Exception as error:
        message = diagnose(error, recipe.run.path).message
        recipe.emit(events.Warning_(Message(f"No LoRA was written at step {checkpointer.step}: ", message)))


def save_last_step(recipe: TrainingRecipe) -> str:
    """Save the last complete step of a run that fails for a reason outside of it; returns a sentence about where the run resumes."""
    checkpointer = recipe.checkpointer
    if checkpointer is not None and recipe.writes and checkpointer.saved_step < checkpointer.step:
        with suppress(Exception), recipe.lock:  # the first failure is what matters
            checkpointer.save_now()
    step = recipe.opened.start.step if checkpointer is None else checkpointer.saved_step
    return f"The run resumes at step {step}." if step else ""


def explain_failure(error: Exception, folder: Path, opened: OpenedRun) -> UserError:
    """``error`` in words for the user; when memory ran out, with the setting that would help this run most."""
    failure = diagnose(error, folder)
    if failure.kind == "internal" and opened.base.guard.is_missing:
        try:
            opened.base.guard.require_unchanged()
        except UserError as missing:
            return missing
    if failure.kind == "memory" and not isinstance(error, UserError):
        with suppress(Exception):  # the general hint is better than none
            failure.hint = memory_hint(opened.plan.memory_gb, savings(opened.plan, opened.memory_with))
    return failure


def _collect_garbage_from_here_on() -> None:
    """Where the garbage collector was switched off for the start: switch it on, for what comes from now on."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
