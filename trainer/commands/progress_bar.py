"""The event stream as a progress bar in the terminal, drawn by rich."""

from __future__ import annotations

import time

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..core.counting import plural
from ..core.work.progress import format_progress, is_byte_count
from ..runs import events

_REQUESTS = {  # in the words of the canvas
    "save_now": "Save now: after step {step}",
    "sample_now": "Sample now: after step {step}",
    "stop_after_epoch": "Stop after this epoch: the training stops at its end",
    "pause": "Pause: after step {step}; the models stay in memory",
    "resume": "Resume",
    "edit_prompts": "The validation prompts changed, from the next images on",
}


class TrainingProgress:
    """A progress bar while its context is active; ``show`` takes every event of a run."""

    def __init__(self, console: Console | None = None) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console or Console(stderr=True),
        )
        self._task = self._progress.add_task("starting", total=None, detail="")
        self._validation = ""

    def __enter__(self) -> TrainingProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, event: events.Event) -> None:
        """Draw one event."""
        if isinstance(event, events.Plan):
            self._print(
                f"{plural(event.images, 'image')}, {plural(event.steps, 'step')} ({plural(event.epochs, 'epoch')}), "
                f"{event.trainable_parameters:,} parameters in {plural(event.modules, 'module')}, "
                f"{event.device} {event.precision}, about {event.memory_gb:.1f} GB"
            )
            if event.regularisation:
                self._print(event.regularisation)
        elif isinstance(event, events.Continued):
            self._print(event.message)
        elif isinstance(event, events.Requested):
            self._print(_REQUESTS.get(event.action, event.action).format(step=event.step))
        elif isinstance(event, events.Phase):
            self._progress.update(self._task, description=event.phase, completed=event.done, total=event.total or None, detail="")
        elif isinstance(event, events.Step):
            self._step(event)
        elif isinstance(event, events.Validation):
            self._validation = f"  val {event.loss:.4f}"
            self._print(f"validation, epoch {event.epoch}: loss {event.loss:.4f} of {event.pictures} held-out images")
        elif isinstance(event, events.Sample):
            self._print(f"sample, epoch {event.epoch}: {event.path}")
        elif isinstance(event, events.Checkpoint):
            self._print(f"checkpoint, step {event.step}: {event.lora}")
        elif isinstance(event, events.Warning_):
            self._print(f"warning: {event.message}", style="yellow")

    def work(self, what: str, done: int, total: int) -> None:
        """Draw what is done before the training process starts (a listener of long_work)."""
        detail = format_progress(done, total) if is_byte_count(total) else ""
        if detail:
            done, total = 100 * done // total, 100
        self._progress.update(self._task, description=escape(what), completed=done, total=total or None, detail=detail)

    def _step(self, event: events.Step) -> None:
        detail = (
            f"epoch {event.epoch}  loss {event.loss_average:.4f}{self._validation}  lr {event.lr:.2e}  "
            f"{event.images_per_second:.2f} img/s  {event.memory_gb:.1f} GB  {hours_minutes_seconds(event.eta)} left"
        )
        self._progress.update(self._task, description="training", completed=event.step, total=event.steps, detail=detail)

    def _print(self, text: str, style: str | None = None) -> None:
        self._progress.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)  # names may have square brackets


def hours_minutes_seconds(seconds: float) -> str:
    """``3723`` seconds as ``1:02:03``."""
    moment = time.gmtime(max(0, int(seconds)))
    hours = moment.tm_hour + 24 * (moment.tm_yday - 1)
    return f"{hours}:{moment.tm_min:02d}:{moment.tm_sec:02d}"
