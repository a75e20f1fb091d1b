"""What Train LoRA shows while a run trains: a progress bar, and events for the panel, which shows everything else."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths

from ...trainer.dataset.reading.surrogates import replace_surrogates
from ...trainer.runs import events
from ...trainer.runs.controls import Control
from .before_run.fixes import widget_values
from .browser import is_interrupted, send
from .files.images import keep_graph
from .wording import on_canvas
from .workflow_metadata import set_property

log = logging.getLogger("animelora")
RUNNING: dict[str, dict[str, Any]] = {}
"""By node id, ``run`` (the name of the run folder), ``name`` (of the LoRA) and ``settings`` (widget values) of every active training. Only
TrainingView writes it."""
CONTROLS: dict[str, SimpleQueue[Control]] = {}
"""By the name of the run folder, where requests to every active training are put. Only TrainingView writes it."""
FINISHED: dict[str, dict[str, Any]] = {}
"""The same for the last run of each node. Only TrainingView writes it."""
_RUN_PROPERTY = "animelora_run"  # in which the panel remembers its run


class TrainingView:
    """Shows the events of a run in its node while its ``with`` block runs. ``cancelled`` is True once the user pressed Cancel.

    ``run`` is the name of the run folder and ``name`` that of the LoRA, for pages that are opened later. ``settings`` are the node's widget
    values, by which a page recognises the node that was queued. ``graph`` is stored in the validation images; the workflow in it, which
    ComfyUI also stores in the images of other nodes, names this run instead of the one before.
    """

    def __init__(
        self,
        node_id: str | None,
        run: str,
        name: str,
        graph: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.node_id = node_id
        self.reused = False
        self.summary = ""
        self.cancelled = False
        self._graph = dict(graph or {})
        self._run = {"run": run, "name": name}
        self._queued = {**self._run, "settings": dict(settings or {})}
        self.controls: SimpleQueue[Control] = SimpleQueue()
        self._bar = comfy.utils.ProgressBar(1, node_id=node_id)
        self._steps = 1
        self._step = 0

    def __enter__(self) -> TrainingView:
        RUNNING[self.node_id or ""] = self._queued
        CONTROLS[self._run["run"]] = self.controls
        set_property(self._graph.get("workflow"), self.node_id or "", _RUN_PROPERTY, self._run["run"])
        self._send({"event": "run", **self._queued})
        return self

    def __exit__(self, *_: object) -> None:
        RUNNING.pop(self.node_id or "", None)
        CONTROLS.pop(self._run["run"], None)
        FINISHED[self.node_id or ""] = self._queued
        self._send({"event": "end", **self._queued, "reused": self.reused, "summary": self.summary})

    def should_stop(self) -> bool:
        """Whether the user pressed Cancel; the launcher polls it."""
        self.cancelled = self.cancelled or is_interrupted()
        return self.cancelled

    def announce(self, message: str) -> None:
        """Show what the run is about to do: start, resume, continue an earlier run, or use a finished LoRA."""
        log.info("training: %s", replace_surrogates(on_canvas(message)))
        self._send({"event": "outlook", "message": on_canvas(message)})

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
        self._update_bar()

    def _update_bar(self) -> None:
        try:
            self._bar.update_absolute(self._step, self._steps)
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
    data = {"event": event.name, **{key: _for_browser(value) for key, value in asdict(event).items()}}
    return data | {"fixes": widget_values(event.message, event.hint)} if isinstance(event, events.Error) else data


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


def run_notes(log: Sequence[events.Event]) -> list[str]:
    """Notes and warnings of a run, each once, in the words of the canvas."""
    plans = [event for event in log if isinstance(event, events.Plan)]
    notes = [f"Text encoder: {plan.text_encoder}. VAE: {plan.vae or 'the checkpoint’s own'}." for plan in plans if plan.text_encoder]
    notes += [f"Latents: {plan.latents}." for plan in plans if plan.latents]
    notes += [plan.regularisation for plan in plans if plan.regularisation]
    notes += [event.message for event in log if isinstance(event, events.Warning_)]
    return list(dict.fromkeys(on_canvas(note) for note in notes))
