"""What a running node shows: a line of text, a bar with a preview, and events for the browser."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
from PIL import Image
from server import PromptServer

from ...trainer.core.counting import plural
from ...trainer.core.files.image_file import load_image
from ...trainer.core.work.progress import share
from ...trainer.dataset.reading.surrogates import replace_surrogates
from ...trainer.runs import events
from .images import keep_graph
from .wording import on_canvas

log = logging.getLogger("animelora")
EVENT = "animelora.train"
USED = "animelora.lora"
CHANGED = "animelora.loras"
RUNNING: dict[str, dict[str, str]] = {}
"""By node id: ``run`` (the run folder's name) and ``name`` (the LoRA's) of every training that goes on. Only TrainingView writes it."""
FINISHED: dict[str, dict[str, str]] = {}
"""The same of the run that each node had last. Only TrainingView writes it."""
_PREVIEW = 512  # pixels of the longer side
_TEXT_EVERY = 0.5  # seconds between two lines of text


def say(node_id: str | None, text: str) -> None:
    """Show ``text`` in the node."""
    server = getattr(PromptServer, "instance", None)
    if node_id is not None and server is not None:
        server.send_progress_text(replace_surrogates(text), node_id)  # names of files need not be text


def work_text(node_id: str | None) -> Callable[[str, int, int], None]:
    """A listener of trainer.core.long_work that shows in the node what is done before the training process starts."""
    spoke = time.monotonic()

    def tell(what: str, done: int, total: int) -> None:
        nonlocal spoke
        if time.monotonic() - spoke >= _TEXT_EVERY:
            spoke = time.monotonic()
            say(node_id, f"{what}: {share(done, total)}")

    return tell


def show_lora(node_id: str | None, name: str) -> None:
    """Tell the browser which LoRA of the list a node has just used; its card shows that one."""
    server = getattr(PromptServer, "instance", None)
    if node_id is not None and name and server is not None:
        server.send_sync(USED, {"node_id": node_id, "name": name})


def loras_changed() -> None:
    """Tell every open page that models/loras has a new file, so that its menus ask again. A training's end says so by itself."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_sync(CHANGED, {})


def interrupted() -> bool:
    """Whether the user pressed Cancel; the flag stays as it is."""
    return bool(comfy.model_management.processing_interrupted())


class TrainingView:
    """Shows a run's events in its node, from ``with`` to its end. ``cancelled`` is set once the user pressed Cancel.

    ``run`` is the name of the run's folder, ``name`` the LoRA's: they tell a browser that joins later where to look.
    ``graph`` is kept in the test pictures.
    """

    def __init__(self, node_id: str | None, run: str, name: str, graph: Mapping[str, Any] | None = None) -> None:
        self.node_id = node_id
        self._graph = dict(graph or {})
        self.cancelled = False
        self._run = {"run": run, "name": name}
        self._bar = comfy.utils.ProgressBar(1, node_id=node_id)
        self._spoke = 0.0
        self._steps = 1
        self._step = 0

    def __enter__(self) -> TrainingView:
        RUNNING[self.node_id or ""] = self._run
        self._tell({"event": "run"})
        return self

    def __exit__(self, *_: object) -> None:
        RUNNING.pop(self.node_id or "", None)
        FINISHED[self.node_id or ""] = self._run
        self._tell({"event": "end"})

    def should_stop(self) -> bool:
        """For the launcher's poll."""
        self.cancelled = self.cancelled or interrupted()
        return self.cancelled

    def on_event(self, event: events.Event) -> None:
        """Show one event of the run."""
        if isinstance(event, events.Sample) and self._graph:
            self._keep_graph(Path(event.path))
        self._send(event)
        text, preview = "", None
        if isinstance(event, events.Plan):
            self._steps, self._step = max(1, event.steps), event.start_step
            text = f"{plural(event.images, 'image')}, {plural(event.steps, 'step')} on {event.device} ({event.precision})"
            if event.regularisation:
                text += f"\n{on_canvas(event.regularisation)}"
        elif isinstance(event, events.Phase):
            text = event.phase if not event.total else f"{event.phase} {event.done}/{event.total}"
        elif isinstance(event, events.Step):
            self._step = event.step
            text = (
                f"step {event.step}/{event.steps} · epoch {event.epoch} · loss {event.loss_average:.4f}\n"
                f"{event.images_per_second:.2f} images/s · {duration(event.eta)} left"
            )
        elif isinstance(event, events.Sample):
            preview = _open(event.path)
        elif isinstance(event, events.Warning_):
            log.warning("training: %s", replace_surrogates(event.message))
        elif isinstance(event, events.Done):
            self._step = self._steps
        self._show(text, preview)

    def _show(self, text: str, preview: Image.Image | None) -> None:
        now = time.monotonic()
        if text and (now - self._spoke >= _TEXT_EVERY or self._step >= self._steps):
            self._spoke = now
            say(self.node_id, text)
        try:
            shown = None if preview is None else ("JPEG", preview, _PREVIEW)
            self._bar.update_absolute(self._step, self._steps, shown)
        except comfy.model_management.InterruptProcessingException:
            self.cancelled = True  # the flag is lowered by now: the launcher stops the child, the node raises again

    def _keep_graph(self, path: Path) -> None:
        try:
            keep_graph(path, self._graph)
        except OSError:
            log.debug("the sample %s does not carry its workflow", path, exc_info=True)

    def _send(self, event: events.Event) -> None:
        data = event_data(event)
        if isinstance(event, events.Sample):
            data["view"] = viewable(Path(event.path))
        self._tell(data)

    def _tell(self, data: dict[str, Any]) -> None:
        server = getattr(PromptServer, "instance", None)
        if server is not None:
            server.send_sync(EVENT, {**data, **self._run, "node_id": self.node_id})


def event_data(event: events.Event) -> dict[str, Any]:
    """An event as JSON for the browser: messages in the words of the canvas, null for the numbers that JSON lacks."""
    return {"event": event.name, **{key: _for_browser(value) for key, value in asdict(event).items()}}


def _for_browser(value: Any) -> Any:
    if isinstance(value, str):
        return on_canvas(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def viewable(path: Path) -> dict[str, str] | None:
    """What ComfyUI's ``/view`` needs to show a file in the output folder; None for a file elsewhere."""
    try:
        relative = path.resolve().relative_to(Path(folder_paths.get_output_directory()).resolve())
    except ValueError:
        return None
    return {"filename": relative.name, "subfolder": relative.parent.as_posix(), "type": "output"}


def duration(seconds: float) -> str:
    """``75`` as ``1 min 15 s``."""
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def _open(path: str) -> Image.Image | None:
    try:
        return load_image(path)
    except OSError:
        log.debug("the sample %s could not be shown", path, exc_info=True)
        return None
