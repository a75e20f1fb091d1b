"""The training run from top to bottom, as the child process does it."""

from __future__ import annotations

import gc
import os
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ..config import run_config as config
from ..core.diagnosis import diagnose
from ..core.disk_errors import exit_status_for
from ..core.errors import Cancelled
from ..core.gpu_sync import StepLimiter
from ..core.messages import Message
from ..core.work.processes import current_process_group
from ..runs import events
from ..runs.run_folder import RunFolder
from ..runs.states import state_folder
from .batches import Feed, Portion
from .checkpoints import Keeper
from .distributed import make_accelerator
from .job import open_job
from .learner import Learner
from .monitoring.preview_images import make_sample_images
from .monitoring.step_log import Teller
from .monitoring.validation import validate
from .parent_channel import Emitter, Silent, watch_parent

DONE, FAILED, STOPPED = 0, 1, 3
_FAREWELL_SECONDS = 2.0  # that other processes than the first wait before they leave a run that ends early


def train_run(folder: Path, *, watch_stdin: bool) -> int:
    """Train the run in ``folder``; its exit status. Every outcome is the last event of the log: done, stopped or error."""
    loaded = config.load(folder / "config.json")
    run = RunFolder(folder, loaded.name)
    first = current_process_group().is_main
    emit = Emitter(run.events) if first else Silent()
    stop = threading.Event()
    trainer: Trainer | None = None

    def on_stop() -> None:
        stop.set()
        # a step may take longer than anyone waits: save between steps from this thread, then leave
        if trainer is not None and first:
            trainer.stop_now()

    if watch_stdin:
        watch_parent(on_stop)
    try:
        emit(events.Phase("loading"))
        trainer = Trainer(run, loaded, emit, stop)
        _look_for_garbage()
        trainer.train()
        return DONE
    except Cancelled:
        if trainer is not None:
            trainer.stop_now()
        emit(events.Stopped(0, ""))
        return STOPPED
    except Exception as error:  # every failure becomes an event with its cause and a hint
        failure = diagnose(error, folder) if trainer is None else trainer.job.explained(error)
        with suppress(OSError):  # the log is on the disk that may be full
            traceback.print_exc()
        if trainer is not None and failure.kind == "checkpoint":
            failure.hint = Message(failure.hint, " ", trainer.save_step())
        if not first:
            time.sleep(_FAREWELL_SECONDS)  # most often the first process fails of the same and tells it
            emit = Emitter(run.events)
        try:
            emit(events.Error(failure.kind, failure.message, failure.hint))
        except OSError as unsaid:  # then the exit status tells the parent why
            return exit_status_for(error, unsaid) or FAILED
        return FAILED
    finally:
        with suppress(OSError):  # an event that could not be written is tried again here
            emit.close()


class Trainer:
    """One run: ``train`` reads like the recipe."""

    def __init__(self, run: RunFolder, config: config.RunConfig, emit: Emitter, stop: threading.Event) -> None:
        self.job, self._start = open_job(run, config, emit, stop)
        self._keeper: Keeper | None = None  # before the models are loaded there is no state worth saving

    def train(self) -> None:
        """Cache, load, train with samples and checkpoints, export."""
        import torch

        job, plan, start = self.job, self.job.plan, self._start
        job.emit(events.Plan.of(plan))
        accelerator = make_accelerator(job)
        feed = Feed(job)
        if job.writes:
            feed.warn_of_cut_captions()
            feed.warn_of_prompt_flags()
            feed.fill_caches()
        accelerator.wait_for_everyone()
        job.emit(events.Phase("loading"))
        learner = Learner(job, start, accelerator)
        teller = Teller(job, float(start.values["average"]) if start.values else 0.0)
        self._start = replace(start, values=None)  # they are in the models now
        self._keeper = keeper = Keeper(job, learner, teller)
        per_epoch = plan.steps_per_epoch

        def look(epoch: int) -> None:
            validate(job, feed, learner, teller, epoch)
            make_sample_images(job, feed, learner, teller, epoch)

        if learner.step % per_epoch == 0 or learner.step == plan.steps:  # at the start, or stopped while the epoch's images were made
            look(-(-learner.step // per_epoch))
        keeper.save_missing_lora()
        job.emit(events.Phase("training", learner.step, plan.steps))
        with ThreadPoolExecutor(1, "batches") as pool:
            clock, queue = time.monotonic(), StepLimiter(job.device)
            for portion in feed.portions(learner.step, learner.timesteps, pool, learner.tokenize):
                _take_step(learner, teller, portion, clock, queue)
                teller.tell()
                if keeper.is_due():
                    keeper.save_state()
                if portion.ends_epoch or learner.step == plan.steps:
                    look(portion.epoch + 1)
                if keeper.is_due():
                    keeper.save_lora()
                if job.stop.is_set():
                    raise Cancelled
                clock = time.monotonic()
        keeper.finish()
        if job.device.type == "cuda":
            torch.cuda.synchronize()

    def stop_now(self) -> None:
        """Save the last complete step and end the process: callable from any thread at any moment."""
        status, job, keeper = STOPPED, self.job, self._keeper
        if not job.writes:
            time.sleep(_FAREWELL_SECONDS)  # the first process saves and leaves, and the launcher then ends the others
            os._exit(status)
        if keeper is not None:
            job.emit(events.Phase(events.SAVING, keeper.step, job.plan.steps))  # the parent waits longer for one that says so
        with job.between_steps:
            try:
                if keeper is not None and keeper.saved_step < keeper.step:
                    keeper.save_now()
                step = self._start.step if keeper is None else keeper.saved_step
                job.emit(events.Stopped(step, str(state_folder(job.run.checkpoints, step)) if step else ""))
            except Exception as error:  # nothing may keep a child alive that was told to stop
                failure, status = diagnose(error, job.run.path), exit_status_for(error) or FAILED
                job.emit(events.Error(failure.kind, failure.message, failure.hint))
            finally:
                os._exit(status)

    def save_step(self) -> str:
        """Save the last complete step of a run that fails for a reason outside of it; where the run then resumes, in words."""
        keeper = self._keeper
        if keeper is not None and self.job.writes and keeper.saved_step < keeper.step:
            with suppress(Exception), self.job.between_steps:  # the failure is what matters
                keeper.save_now()
        step = self._start.step if keeper is None else keeper.saved_step
        return f"The run resumes at step {step}." if step else ""


def _look_for_garbage() -> None:
    """Where the collector was switched off for the start: switch it on, for what comes from now on."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def _take_step(learner: Learner, teller: Teller, portion: Portion, clock: float, queue: StepLimiter) -> None:
    """One optimiser step; a stop finds the weights before it or after it, never between. ``clock``: when the last step ended."""
    measured = learner.optimise(portion.micro_batches)
    with learner.job.between_steps:
        learner.apply()
        queue.step()
        speed = portion.images / max(time.monotonic() - clock, 1e-9)
        teller.note(learner.step, portion.epoch, measured, learner.weight_norms, speed)
