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
from ..adapters.start_from import lora_identity, require_lora
from ..config.run_config import RunConfig, absolute
from ..core import devices
from ..core.disk_errors import about_the_disk, from_exit_status
from ..core.errors import Cancelled, UserError
from ..core.files import remove_partial, require_own_file, write_atomic
from ..core.locks import locked
from ..core.paths import require_short_path
from ..core.text_file import read_text
from ..dataset.open import open_training
from ..families import family_of, open_checkpoint
from ..objective.objective import chosen_prediction
from ..plan.settle import settle
from ..runs import events
from ..runs.pruning import prune
from ..runs.publish import publish, restore
from ..runs.run_folder import RunFolder, RunResult, cache_folder, run_folder, run_identity
from ..runs.states import newest_step, state_folder, state_folders
from .child_process import Tail, end
from .failure import failure, hung, only_follows

OnEvent = Callable[[events.Event], None]
ShouldStop = Callable[[], bool]

# Without any event for this long the child hangs. The longest honest silence is one step of accumulated micro-batches, or one
# validation image, of SDXL on a slow CPU: minutes for each forward pass, half an hour in all.
SILENT_SECONDS = 2 * 3600.0

# MULTI_GPU also starts processes on a CPU: entry.py chooses the device, and accelerate then the way they talk (gloo). accelerate's own
# MULTI_CPU would start a single one.
_ACCELERATE_CONFIG = """\
compute_environment: LOCAL_MACHINE
distributed_type: '{kind}'
num_machines: 1
machine_rank: 0
num_processes: {processes}
main_process_port: 0
mixed_precision: 'no'
use_cpu: {use_cpu}
"""


def train(
    config: RunConfig,
    *,
    on_event: OnEvent | None = None,
    should_stop: ShouldStop | None = None,
    before_start: Callable[[], None] | None = None,
    poll_seconds: float = 0.2,
    silent_seconds: float = SILENT_SECONDS,
    accelerate_config: Path | None = None,
) -> RunResult:
    """Train ``config`` in a child process, or find the finished run; resumes one that was stopped.

    ``on_event`` gets every event in order, on this thread; an exception in it stops the child and is raised. ``should_stop``
    is polled every ``poll_seconds``. A child that tells nothing for ``silent_seconds`` hangs and is killed. ``before_start`` is
    called when a child is really needed (to free a GPU, say). ``accelerate_config`` is a file of ``accelerate config`` to launch with, in
    place of ours; only the command line passes one. Raises Cancelled after a stop (the state is kept) and UserError,
    with the child's last lines and a hint, for everything that goes wrong.
    """
    config = settle(absolute(config))
    tell, stop = on_event or (lambda event: None), should_stop or (lambda: False)
    with _told_of_the_disk(Path(config.output.runs)):
        run = prepare_run(config)
    with _told_of_the_disk(run.path), _only_one(run, tell, stop, poll_seconds):
        done = run.finished() or _restored(run, config, tell)
        if done is not None:
            return _published(run, config, done, tell)
        write_inputs(run, config, accelerate_config)
        if before_start is not None:
            before_start()
        environment = _environment(None if accelerate_config else devices.processor_threads(_processes(config)))
        _run_child(run, environment, tell, stop, poll_seconds, silent_seconds)
        lorafile.verify_lora(run.lora)
        fresh = run.finished()
        if fresh is None:
            raise UserError(
                "The training child ended, but its result is missing or damaged.",
                f"Look at {run.log}; start again to resume.",
                kind="internal",
            )
        result = _published(run, config, replace(fresh, reused=False), tell)
    _prune_old(run, config)
    return result


def prepare_run(config: RunConfig) -> RunFolder:
    """The run folder of ``config`` (not created). Opens dataset and checkpoint, so that bad input fails before any child."""
    config = settle(config)
    dataset = open_training(config).training
    checkpoint = open_checkpoint(config.base.checkpoint, config.base.vae)
    chosen_prediction(family_of(checkpoint).prediction(checkpoint), config.objective, checkpoint.name)
    start = ""
    if config.base.lora:
        require_lora(Path(config.base.lora))
        start = lora_identity(Path(config.base.lora))
    identity = run_identity(config, dataset.hash, checkpoint.identity(cache_folder(config)), start)
    run = run_folder(config, identity)
    require_short_path(run.longest)
    return run


def command(run: RunFolder) -> list[str]:
    """The fixed command line of the child."""
    entry = Path(__file__).resolve().parents[1] / "entry.py"
    return [
        *(sys.executable, str(entry), "--run", str(run.path), "--watch-stdin"),
        *("--accelerate", str(run.path / "accelerate.yaml")),
    ]


def write_inputs(run: RunFolder, config: RunConfig, accelerate_config: Path | None = None) -> None:
    """Make the run folder with the two files that the child is started with. Raises UserError for a configuration that is no text."""
    run.path.mkdir(parents=True, exist_ok=True)
    for path in (run.events, run.log):
        require_own_file(path)
    remove_partial(run.path, run.checkpoints, run.samples, *state_folders(run.checkpoints))
    write_atomic(run.config, config.to_json())
    text = _accelerate_config(config) if accelerate_config is None else _given_config(accelerate_config)
    write_atomic(run.path / "accelerate.yaml", text)


def _accelerate_config(config: RunConfig) -> str:
    processes = _processes(config)
    if config.training.device != "cpu" and processes > max(1, devices.gpu_count()):
        raise UserError(
            f"training.processes is {processes}, but this machine has {devices.gpu_count()} GPUs.",
            "Use 0 for as many as there are; for several machines pass an accelerate configuration (docs/training.md).",
            kind="device",
        )
    kind = "MULTI_GPU" if processes > 1 else "NO"
    return _ACCELERATE_CONFIG.format(kind=kind, processes=processes, use_cpu="true" if config.training.device == "cpu" else "false")


def _processes(config: RunConfig) -> int:
    return max(1, config.training.processes or devices.gpu_count())


def _given_config(path: Path) -> str:
    return read_text(path, "accelerate configuration")


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


@contextmanager
def _told_of_the_disk(folder: Path) -> Iterator[None]:
    """A full disk and a folder that cannot be written as a UserError."""
    try:
        yield
    except OSError as error:
        if (told := about_the_disk(error, folder)) is None:
            raise
        raise told from error


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
