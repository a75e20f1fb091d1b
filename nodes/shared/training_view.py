"""What Train LoRA shows while a run trains: a line of text, a progress bar with the last validation image, and events for the panel."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
from PIL import Image

from ...trainer.core.counting import plural
from ...trainer.core.files.image_file import load_image
from ...trainer.dataset.reading.surrogates import replace_surrogates
from ...trainer.runs import events
from .browser import TEXT_INTERVAL, is_interrupted, send, show_text
from .files.images import keep_graph
from .wording import on_canvas

log = logging.getLogger("animelora")
RUNNING: dict[str, dict[str, str]] = {}
"""By node id, ``run`` (the name of the run folder) and ``name`` (of the LoRA) of every active training. Only TrainingView writes it."""
FINISHED: dict[str, dict[str, str]] = {}
"""The same for the last run of each node. Only TrainingView writes it."""
_IMAGE_SIZE = 512  # pixels of the longer side


class TrainingView:
    """Shows the events of a run in its node while its ``with`` block runs. ``cancelled`` is True once the user pressed Cancel.

    ``run`` is the name of the run folder and ``name`` that of the LoRA, for pages that are opened later. ``graph`` is stored in the
    validation images.
    """

    def __init__(self, node_id: str | None, run: str, name: str, graph: Mapping[str, Any] | None = None) -> None:
        self.node_id = node_id
        self._graph = dict(graph or {})
        self.cancelled = False
        self._run = {"run": run, "name": name}
        self._bar = comfy.utils.ProgressBar(1, node_id=node_id)
        self._last_text = 0.0
        self._steps = 1
        self._step = 0

    def __enter__(self) -> TrainingView:
        RUNNING[self.node_id or ""] = self._run
        self._send({"event": "run"})
        return self

    def __exit__(self, *_: object) -> None:
        RUNNING.pop(self.node_id or "", None)
        FINISHED[self.node_id or ""] = self._run
        self._send({"event": "end"})

    def should_stop(self) -> bool:
        """Whether the user pressed Cancel; the launcher polls it."""
        self.cancelled = self.cancelled or is_interrupted()
        return self.cancelled

    def on_event(self, event: events.Event) -> None:
        """Show one event of the run."""
        if isinstance(event, events.Sample) and self._graph:
            self._store_graph(Path(event.path))
        self._send(event_data(event) | ({"view": viewable(Path(event.path))} if isinstance(event, events.Sample) else {}))
        if isinstance(event, events.Plan):
            self._steps, self._step = max(1, event.steps), event.start_step
        elif isinstance(event, events.Step):
            self._step = event.step
        elif isinstance(event, events.Done):
            self._step = self._steps
        elif isinstance(event, events.Warning_):
            log.warning("training: %s", replace_surrogates(on_canvas(event.message)))
        self._show_text(_text(event))
        self._update_bar(_open(event.path) if isinstance(event, events.Sample) else None)

    def _show_text(self, text: str) -> None:
        now = time.monotonic()
        if text and (now - self._last_text >= TEXT_INTERVAL or self._step >= self._steps):
            self._last_text = now
            show_text(self.node_id, text)

    def _update_bar(self, preview: Image.Image | None) -> None:
        image = None if preview is None else ("JPEG", preview, _IMAGE_SIZE)
        try:
            self._bar.update_absolute(self._step, self._steps, image)
        except comfy.model_management.InterruptProcessingException:
            self.cancelled = True  # ComfyUI has lowered its flag: the launcher stops the child, and the node raises again

    def _store_graph(self, path: Path) -> None:
        try:
            keep_graph(path, self._graph)
        except OSError:
            log.debug("the workflow could not be stored in %s", path, exc_info=True)

    def _send(self, data: dict[str, Any]) -> None:
        send("animelora.train", {**data, **self._run, "node_id": self.node_id})


def event_data(event: events.Event) -> dict[str, Any]:
    """An event as JSON for the browser: messages in the words of the canvas, null for the numbers that JSON lacks."""
    return {"event": event.name, **{key: _for_browser(value) for key, value in asdict(event).items()}}


def _for_browser(value: Any) -> Any:
    if isinstance(value, str):
        return on_canvas(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def viewable(path: Path) -> dict[str, str] | None:
    """The parameters with which ComfyUI's ``/view`` shows a file in the output folder; None for a file elsewhere."""
    try:
        relative = path.resolve().relative_to(Path(folder_paths.get_output_directory()).resolve())
    except ValueError:
        return None
    return {"filename": relative.name, "subfolder": relative.parent.as_posix(), "type": "output"}


def format_duration(seconds: float) -> str:
    """``75`` as ``1 min 15 s``."""
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def _text(event: events.Event) -> str:
    """The text of the node for an event; empty for an event that leaves it unchanged."""
    if isinstance(event, events.Plan):
        text = f"{plural(event.images, 'image')}, {plural(event.steps, 'step')} on {event.device} ({event.precision})"
        return f"{text}\n{on_canvas(event.regularisation)}" if event.regularisation else text
    if isinstance(event, events.Phase):
        return f"{event.phase} {event.done}/{event.total}" if event.total else event.phase
    if isinstance(event, events.Step):
        return (
            f"step {event.step}/{event.steps} · epoch {event.epoch} · loss {event.loss_average:.4f}\n"
            f"{event.images_per_second:.2f} images/s · {format_duration(event.eta)} left"
        )
    return ""


def _open(path: str) -> Image.Image | None:
    try:
        return load_image(path)
    except OSError:
        log.debug("the validation image %s could not be read", path, exc_info=True)
        return None
