"""Starting a training run and following it to its end: the parent's side, for the node and for the command line.

The child is one script with a fixed argument list and a configuration file that we wrote. accelerate's launcher runs inside it and either
trains there or starts the number of processes that the configuration asks for. Nothing that a user typed reaches a command line. The child
appends events to a file in the run folder, which a thread reads.
"""

from __future__ import annotations

import os
import subprocess  # nosec B404: for the one fixed command line, see command()
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import TypeAlias

from .. import lorafile
from ..config.run_config import RunConfig
from ..core import devices
from ..core.disk_errors import from_exit_status
from ..core.errors import Cancelled, UserError
from ..core.files.locks import hold_lock
from ..core.messages import Message
from ..runs import events
from ..runs.controls import Control
from ..runs.lineage import forget
from ..runs.pruning import prune
from ..runs.publish import publish, restore
from ..runs.run_folder import RunFolder, RunResult
from ..runs.states import newest_step, state_folder
from .accelerate_config import process_count
from .child_process import EventTail, end_process, pass_on
from .failure import failure_of, hung_error, is_consequence
from .outlook import continue_earlier
from .prepared_run import PreparedRun, disk_errors_explained, write_run_folder

OnEvent = Callable[[events.Event], None]
ShouldStop = Callable[[], bool]
Controls: TypeAlias = "SimpleQueue[Control]"

# A child that writes no event for this long hangs. The longest legitimate silence is one step of accumulated micro-batches, or one
# validation image, with SDXL on a slow CPU: minutes for each forward pass, half an hour in all.
SILENT_SECONDS = 2 * 3600.0


def train(
    run: PreparedRun,
    *,
    on_event: OnEvent | None = None,
    should_stop: ShouldStop | None = None,
    before_start: Callable[[], None] | None = None,
    poll_seconds: float = 0.2,
    silent_seconds: float = SILENT_SECONDS,
    accelerate_config: Path | None = None,
    from_scratch: bool = False,
    controls: Controls | None = None,
) -> RunResult:
    """Train ``run`` in a child process and return its result. A finished run is found, not repeated; a stopped one resumes, and a run that
    differs from an earlier one only in what comes later continues that one. ``from_scratch``: starts at the first step whatever exists.
    ``controls``: requests to the child, which are passed on as they are put there; None if there will be none.

    ``on_event`` is called with every event in order, on this thread; an exception in it stops the child and is raised. ``should_stop`` is
    polled every ``poll_seconds``. A child that writes no event for ``silent_seconds`` is killed. ``before_start`` is called only if a child
    is needed, for example to free the GPU. ``accelerate_config`` is a file made by ``accelerate config`` to launch with in place of ours.

    Raises Cancelled after a stop (the state is kept), and UserError with a hint for every failure.
    """
    folder, config = run.folder, run.config
    on_event, should_stop = on_event or (lambda event: None), should_stop or (lambda: False)
    with disk_errors_explained(folder.path), _locked(folder, on_event, should_stop, poll_seconds):
        if from_scratch:
            forget(folder)
        finished = folder.finished() or _restored(folder, config, on_event)
        if finished is not None:
            return _published(folder, config, finished, on_event)
        write_run_folder(run, accelerate_config)
        if not from_scratch:
            continue_earlier(run, on_event)
        if before_start is not None:
            before_start()
        environment = _environment(None if accelerate_config else devices.processor_threads(process_count(config)))
        _run_child(folder, environment, on_event, should_stop, controls or SimpleQueue(), poll_seconds, silent_seconds)
        lorafile.verify_lora(folder.lora)
        finished = folder.finished()
        if finished is None:
            raise UserError(
                "The training child ended, but its result is missing or damaged.",
                f"See {folder.log}. Start again to resume.",
                kind="internal",
            )
        result = _published(folder, config, replace(finished, reused=False), on_event)
    _prune_old(folder, config)
    return result


def command(run: RunFolder) -> list[str]:
    """The fixed command line of the child."""
    entry = Path(__file__).resolve().parents[1] / "entry.py"
    return [
        *(sys.executable, str(entry), "--run", str(run.path), "--watch-stdin"),
        *("--accelerate", str(run.accelerate_config)),
    ]


def _run_child(
    run: RunFolder,
    environment: dict[str, str],
    on_event: OnEvent,
    should_stop: ShouldStop,
    controls: Controls,
    poll_seconds: float,
    silent_seconds: float,
) -> None:
    """Start the child and follow it to its end. Raises Cancelled if it was stopped and UserError if it failed."""
    start = run.events.stat().st_size if run.events.exists() else 0
    child, log_start = _start_child(run, environment)
    last: events.Event | None = None
    stopping = False
    silent = 0.0  # the sum of the waits: unaffected by a clock that is set or a machine that sleeps

    def report_new_events(*, final: bool = False) -> bool:
        """Pass on what the child wrote since the last call; whether it wrote anything."""
        nonlocal last
        new_events = tail.take(final=final)
        for event in new_events:
            if not is_consequence(event, last):
                last = event
                on_event(event)
        return bool(new_events)

    def is_saving() -> bool:
        report_new_events()
        return tail.saving

    with EventTail(run.events, start) as tail:
        try:
            while child.poll() is None:
                silent = 0.0 if report_new_events() else silent
                if should_stop():
                    stopping = True
                    end_process(child, is_saving)
                    break
                if silent >= silent_seconds:
                    raise hung_error(run, last, silent)
                pass_on(controls, child)
                tail.wait(poll_seconds)
                silent += poll_seconds
            # a stopped child has events, too: its last steps, the image that it was about to finish, the step at which it stopped
            report_new_events(final=True)
        finally:
            end_process(child, lambda: tail.saving)
    if stopping and not isinstance(last, events.Stopped | events.Done | events.Error):
        _report_kill(run, child.returncode, on_event)
    if stopping or isinstance(last, events.Stopped):
        raise Cancelled
    if child.returncode == 0 and isinstance(last, events.Done):
        return
    raise failure_of(run, child.returncode, last, log_start)


def _start_child(run: RunFolder, environment: dict[str, str]) -> tuple[subprocess.Popen[bytes], int]:
    """The started child, and where its output begins in the run's log."""
    with run.log.open("ab") as log:
        log.write(f"\n--- started {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
        log.flush()
        log_start = log.tell()
        child = subprocess.Popen(  # nosec B603: no shell, and nothing that a user typed
            command(run),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=run.path,
            # in a process group of its own, so that Ctrl+C in the terminal reaches only the parent, which lets the child save its state
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # Windows
        )
    return child, log_start


def _report_kill(run: RunFolder, status: int, on_event: OnEvent) -> None:
    """Report the step at which a run resumes whose child was killed while it stopped."""
    step = newest_step(run.checkpoints)
    where = f"at step {step}" if step else "from the beginning"
    disk_error = from_exit_status(status, run.path)
    reason = "The training child did not save its state in time and was killed." if disk_error is None else disk_error.message
    on_event(events.Warning_(Message(reason, f" Queue again to resume {where}.")))
    on_event(events.Stopped(step, str(state_folder(run.checkpoints, step)) if step else ""))


def _prune_old(run: RunFolder, config: RunConfig) -> None:
    """Delete states and caches older than ``output.prune_days`` (see ``pruning``)."""
    days = config.output.prune_days
    if days:
        with suppress(OSError, UserError):  # a failed clean-up must not cost the result
            prune(run.path.parent, days=days, finished_days=days, dry_run=False)


def _restored(run: RunFolder, config: RunConfig, on_event: OnEvent) -> RunResult | None:
    """The result of a finished run whose LoRA is lost or damaged in the run folder, but intact where it was published; else None."""
    published = restore(run, config.output.publish)
    if published is None:
        return None
    on_event(events.Warning_(f"The LoRA in the run folder was missing or damaged. It was copied back from {published}."))
    return run.finished()


def _published(run: RunFolder, config: RunConfig, result: RunResult, on_event: OnEvent) -> RunResult:
    """``result`` with the path of the published LoRA."""
    published = publish(run, config.output.publish)
    if published is not None and published.name != run.lora.name:
        message = f"{published.parent} already holds a different {run.lora.name}, so the new LoRA is saved as {published.name}."
        on_event(events.Warning_(message))
    return replace(result, lora=published or run.lora)


@contextmanager
def _locked(run: RunFolder, on_event: OnEvent, should_stop: ShouldStop, poll_seconds: float) -> Iterator[None]:
    """Hold the lock of the run folder. A second process that starts the same run waits, and then finds it finished.

    Also wait for the child of a parent that was killed: it is saving the state to resume from.
    """

    def waiting() -> None:
        on_event(events.Phase(events.WAITING))

    run.path.mkdir(parents=True, exist_ok=True)
    with hold_lock(run.parent_lock, should_stop, poll_seconds, waiting=waiting):
        with hold_lock(run.child_lock, should_stop, poll_seconds, waiting=waiting):
            pass
        yield


def _environment(threads: int | None) -> dict[str, str]:
    """The child's environment variables. ``threads``: of each process; None leaves that to accelerate."""
    settings = {
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8:backslashreplace",
        "TOKENIZERS_PARALLELISM": "false",
        # Threads sleep while they wait for each other, else two processes on the same cores are slower than one after the other. GNU's
        # OpenMP first spins for some microseconds: between two operations that is long enough, and waking up costs a third of a step.
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "10000",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "ACCELERATE_DISABLE_RICH": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
    }
    # the ranks of a launcher that started this process, such as a cluster's, must not leak into a run of one process
    inherited = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    # unless its configuration names the CPU, accelerate sets a single thread: too few for ``auto`` without a GPU, and beside a GPU
    if threads is not None:
        inherited.setdefault("OMP_NUM_THREADS", str(threads))
    return {**inherited, **settings}
