"""Starting a training run and following it: the parent's side, used by the node and the command line alike.

The child is one script with a fixed argument list and one configuration file that this module wrote; accelerate's launcher, in
it, trains there or starts as many processes as the configuration asks for. Nothing a user typed reaches a command line. The
child appends events to a file in the run folder; a thread reads it.
"""

from __future__ import annotations

import os
import subprocess  # nosec B404: the one fixed command line, see command()
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from .. import lorafile
from ..config.run_config import RunConfig
from ..core import devices
from ..core.disk_errors import from_exit_status
from ..core.errors import Cancelled, UserError
from ..core.files.locks import locked
from ..runs import events
from ..runs.pruning import prune
from ..runs.publish import publish, restore
from ..runs.run_folder import RunFolder, RunResult
from ..runs.states import newest_step, state_folder
from .accelerate_config import process_count
from .child_process import Tail, end
from .failure import failure, hung, only_follows
from .prepared_run import PreparedRun, disk_errors_explained, write_run_folder

OnEvent = Callable[[events.Event], None]
ShouldStop = Callable[[], bool]

# Without any event for this long the child hangs. The longest honest silence is one step of accumulated micro-batches, or one
# validation image, of SDXL on a slow CPU: minutes for each forward pass, half an hour in all.
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
) -> RunResult:
    """Train ``run`` in a child process, or find it finished; resumes one that was stopped.

    ``on_event`` gets every event in order, on this thread; an exception in it stops the child and is raised. ``should_stop``
    is polled every ``poll_seconds``. A child that tells nothing for ``silent_seconds`` hangs and is killed. ``before_start`` is
    called when a child is really needed (to free a GPU, say). ``accelerate_config`` is a file of ``accelerate config`` to launch with, in
    place of ours; only the command line passes one. Raises Cancelled after a stop (the state is kept) and UserError,
    with the child's last lines and a hint, for everything that goes wrong.
    """
    folder, config = run.folder, run.config
    tell, stop = on_event or (lambda event: None), should_stop or (lambda: False)
    with disk_errors_explained(folder.path), _only_one(folder, tell, stop, poll_seconds):
        done = folder.finished() or _restored(folder, config, tell)
        if done is not None:
            return _published(folder, config, done, tell)
        write_run_folder(run, accelerate_config)
        if before_start is not None:
            before_start()
        environment = _environment(None if accelerate_config else devices.processor_threads(process_count(config)))
        _run_child(folder, environment, tell, stop, poll_seconds, silent_seconds)
        lorafile.verify_lora(folder.lora)
        fresh = folder.finished()
        if fresh is None:
            raise UserError(
                "The training child ended, but its result is missing or damaged.",
                f"Look at {folder.log}; start again to resume.",
                kind="internal",
            )
        result = _published(folder, config, replace(fresh, reused=False), tell)
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
    run: RunFolder, environment: dict[str, str], tell: OnEvent, stop: ShouldStop, poll_seconds: float, silent_seconds: float
) -> None:
    """Start the child and follow it to its end. Raises Cancelled or UserError unless it ended well."""
    start = run.events.stat().st_size if run.events.exists() else 0
    with run.log.open("ab") as log:
        log.write(f"\n--- started {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
        log.flush()
        log_start = log.tell()
        child = subprocess.Popen(  # nosec B603: nothing a user typed is in it, and there is no shell
            command(run),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=run.path,
            # a group of its own: a Ctrl+C in the terminal reaches only the parent, which stops the child in order
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # Windows
        )
    last: events.Event | None = None
    stopping = False
    silent = 0.0  # summed over the waits: neither a clock that jumps nor a machine that slept counts

    def news(*, final: bool = False) -> bool:
        """Tell what the child has told since the last call; whether that was anything."""
        nonlocal last
        told = tail.take(final=final)
        for event in told:
            if not only_follows(event, last):
                last = event
                tell(event)
        return bool(told)

    def saving() -> bool:
        news()
        return tail.saving

    with Tail(run.events, start) as tail:
        try:
            while child.poll() is None:
                silent = 0.0 if news() else silent
                if stop():
                    stopping = True
                    end(child, saving)
                    break
                if silent >= silent_seconds:
                    raise hung(run, last, silent)
                tail.wait(poll_seconds)
                silent += poll_seconds
            news(final=True)  # of a stopped child, too: its last steps, the picture that it was about to finish, where it stopped
        finally:
            end(child, lambda: tail.saving)
    if stopping and not isinstance(last, events.Stopped | events.Done | events.Error):
        kept = newest_step(run.checkpoints)
        goes_on = f"from step {kept}" if kept else "from the start"
        untold = from_exit_status(child.returncode, run.path)
        why = "The training child did not save its state in time and was killed" if untold is None else untold.message.removesuffix(".")
        tell(events.Warning_(f"{why}; queued again, the run goes on {goes_on}."))
        tell(events.Stopped(kept, str(state_folder(run.checkpoints, kept)) if kept else ""))
    if stopping or isinstance(last, events.Stopped):
        raise Cancelled
    if child.returncode == 0 and isinstance(last, events.Done):
        return
    raise failure(run, child.returncode, last, log_start)


def _prune_old(run: RunFolder, config: RunConfig) -> None:
    """After a run there is less to keep: what is older than ``output.prune_days`` goes, by the rule of ``prune``."""
    days = config.output.prune_days
    if days:
        with suppress(OSError, UserError):  # tidying up never costs the result
            prune(run.path.parent, days=days, finished_days=days, dry_run=False)


def _restored(run: RunFolder, config: RunConfig, tell: OnEvent) -> RunResult | None:
    """A finished run whose own LoRA is lost or damaged, and whose published one is not."""
    found = restore(run, config.output.publish)
    if found is None:
        return None
    tell(events.Warning_(f"The LoRA in the run folder was missing or damaged: it was copied back from {found}."))
    return run.finished()


def _published(run: RunFolder, config: RunConfig, result: RunResult, tell: OnEvent) -> RunResult:
    place = publish(run, config.output.publish)
    if place is not None and place.name != run.lora.name:
        tell(events.Warning_(f"{place.parent} holds another {run.lora.name}, which stays: the new LoRA is saved as {place.name}."))
    return replace(result, lora=place or run.lora)


@contextmanager
def _only_one(run: RunFolder, tell: OnEvent, stop: ShouldStop, poll_seconds: float) -> Iterator[None]:
    """A lock on the run folder: a second process that wants the same run waits, then finds it finished."""
    run.path.mkdir(parents=True, exist_ok=True)
    with locked(run.path / ".lock", stop, poll_seconds, waiting=lambda: tell(events.Phase(events.WAITING))):
        yield


def _environment(threads: int | None) -> dict[str, str]:
    """What the child's libraries read while they are loaded. ``threads``: of each process; None leaves that to the launcher."""
    settings = {
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8:backslashreplace",
        "TOKENIZERS_PARALLELISM": "false",
        # Threads that wait for each other sleep, else they make two processes on the same cores slower than one after the other; with
        # GNU's OpenMP only after some microseconds, since between two operations that is all they wait, and waking takes a third of a step.
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "10000",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "ACCELERATE_DISABLE_RICH": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
    }
    # a launcher around this process (a cluster's, say) must not leak its ranks into a run of one process
    inherited = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    # accelerate would set a single thread unless the configuration itself names the CPU: for `auto` without a GPU, and for a GPU's host
    if threads is not None:
        inherited.setdefault("OMP_NUM_THREADS", str(threads))
    return {**inherited, **settings}
