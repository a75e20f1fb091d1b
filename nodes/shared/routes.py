"""Routes for the browser.

Read-only ones: active runs, finished runs, the log of a run, what the next run will do, the values of presets, and the card of a LoRA. One
passes a request on to an active training: save, sample, pause, resume, stop after the epoch, or other validation prompts. Another
copies the LoRA of a saved step to ComfyUI's LoRAs.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiohttp import web
from comfy_api.latest import io
from server import PromptServer

from ...trainer.config import presets
from ...trainer.core.errors import UserError
from ...trainer.core.files.paths import resolve_below, safe_name
from ...trainer.runs import events
from ...trainer.runs.controls import read_control
from ...trainer.runs.event_log import read_events
from ...trainer.runs.run_folder import RunFolder
from ...trainer.runs.saved_lora import require_undamaged_lora
from ...trainer.runs.states import newest_step, state_folder
from .browser import report_new_lora
from .files.folders import loras_dir, runs_dir
from .files.saved_steps import copy_lora, saved_loras, select_steps
from .loras.card_pool import CardPool
from .loras.cards import lora_card, unread_card
from .next_run import next_run
from .training_view import CONTROLS, FINISHED, RUNNING, event_data, run_notes, viewable
from .widgets.training_widgets import by_widget
from .wording import on_canvas

_MAX_POINTS = 2000  # of a curve, more than the pixels that show it
_CARDS = CardPool()
_COLUMNS = ("step", "loss", "loss_average", "lr")


def register(train: type[Any], collecting: Sequence[type[io.ComfyNode]]) -> None:
    """Add the routes to ComfyUI's server, if there is one. ``train`` is the class of Train LoRA, ``collecting`` are the nodes before it
    that only collect settings and datasets."""
    server = getattr(PromptServer, "instance", None)
    if server is None:
        return

    before_train = {str(node.define_schema().node_id): node for node in collecting}
    one_at_a_time = asyncio.Lock()

    @server.routes.get("/animelora/running")
    async def running(_request: web.Request) -> web.Response:
        return web.json_response(dict(RUNNING))

    @server.routes.get("/animelora/presets")
    async def all_presets(_request: web.Request) -> web.Response:
        return web.json_response({name: by_widget(presets.values(name)) for name in presets.names()})

    @server.routes.get("/animelora/finished")
    async def finished(_request: web.Request) -> web.Response:
        return web.json_response(dict(FINISHED))

    @server.routes.get("/animelora/runs/{run}")
    async def run(request: web.Request) -> web.Response:
        try:
            folder = find_run(request.match_info["run"])
        except UserError:
            return web.json_response({"error": "no such run"}, status=404)
        return web.json_response(await asyncio.to_thread(history, folder))

    @server.routes.post("/animelora/runs/{run}/control")
    async def control(request: web.Request) -> web.Response:
        controls = CONTROLS.get(request.match_info["run"])
        if controls is None:
            return web.json_response({"error": "no such training"}, status=404)
        asked = read_control(await request.read()) if is_json(request) else None
        if asked is None:
            return web.json_response({"error": "no such request"}, status=400)
        controls.put(asked)
        return web.json_response({})

    @server.routes.post("/animelora/next_run")
    async def next_one(request: web.Request) -> web.Response:
        try:
            data = await request.json() if is_json(request) else {}
            graph, node_id, run = data["graph"], str(data["node"]), data.get("run")
        except (ValueError, KeyError, TypeError, RecursionError):
            return web.json_response({"kind": "unknown"})
        last_run = None
        with suppress(UserError):  # the folder of the run was deleted
            last_run = find_run(str(run)) if run else None
        async with one_at_a_time:
            return web.json_response(await asyncio.to_thread(next_run, train, before_train, graph, node_id, last_run))

    @server.routes.post("/animelora/runs/{run}/keep")
    async def keep(request: web.Request) -> web.Response:
        try:
            data = await request.json() if is_json(request) else {}
            folder = find_run(request.match_info["run"])
            name = await asyncio.to_thread(keep_epoch, folder, int(data["step"]), int(data["epoch"]))
        except (UserError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            return web.json_response({"error": on_canvas(str(error))}, status=400)
        report_new_lora()
        return web.json_response({"name": name})

    @server.routes.get("/animelora/lora")
    async def lora(request: web.Request) -> web.Response:
        name = request.query.get("name", "")
        try:
            return web.json_response(await _CARDS.read(lambda: lora_card(name)))
        except TimeoutError:
            return web.json_response(unread_card(name))
        except (UserError, OSError):
            return web.json_response({"error": "no such LoRA"}, status=404)


def is_json(request: web.Request) -> bool:
    """Whether a browser asks the server first before another site may send this request."""
    return bool(request.content_type == "application/json")


def find_run(name: str) -> Path:
    """The run folder called ``name``. Raises UserError unless it is a direct child of the runs folder with a log.

    An active run is accepted before its child has written the first line.
    """
    if is_active(name):
        return runs_dir().resolve() / name
    folder = resolve_below(name, [runs_dir()], what="run")
    if folder.parent != runs_dir().resolve() or not RunFolder(folder, name).events.is_file():
        raise UserError(f"There is no run {name!r}.", "", kind="path")
    return folder


def history(folder: Path) -> dict[str, Any]:
    """The log of a run for its panel: curves of at most 2000 points, and the latest of the other events.

    ``folder`` is the absolute path, as in ComfyUI's own ``/internal/folder_paths``.
    """
    run = RunFolder(folder, folder.name)
    log = read_events(run.events)
    steps = {event.step: event for event in log if isinstance(event, events.Step)}
    ordered = [steps[number] for number in sorted(steps)]
    thinned = _thinned(ordered)
    held = {event.step: event.loss for event in log if isinstance(event, events.Validation)}
    samples = {(event.epoch, event.index): event for event in log if isinstance(event, events.Sample)}
    return {
        "run": run.name,
        "folder": str(run.path),
        "curves": {
            **{name: [_number(getattr(event, name)) for event in thinned] for name in _COLUMNS},
            "held": [_number(held.get(event.step)) for event in thinned],
        },
        "plan": _last(log, events.Plan),
        "phase": _last(log, events.Phase),
        "step": event_data(ordered[-1]) if ordered else None,
        "validation": _last(log, events.Validation),
        "samples": [
            {**event_data(event), "view": view}
            for _, event in sorted(samples.items())
            if (view := viewable(Path(event.path))) is not None and Path(event.path).is_file()
        ],
        "notes": run_notes(log),
        "saved": list(saved_loras(folder)),
        "ending": None if is_active(run.name) else event_data(_ending(run, log)),
    }


def keep_epoch(folder: Path, step: int, epoch: int) -> str:
    """Copy the LoRA of a saved step to ComfyUI's LoRAs; the name of the file. Raises UserError if there is none, or for a damaged one."""
    source = select_steps(saved_loras(folder), str(step))[step]
    require_undamaged_lora(source)
    stem = source.stem.removesuffix(f"-{step:06d}")
    return copy_lora(source, loras_dir() / f"{safe_name(f'{stem}_epoch_{epoch}')}.safetensors").name


def _thinned(steps: list[events.Step]) -> list[events.Step]:
    stride = max(1, math.ceil(len(steps) / _MAX_POINTS))
    return steps[::stride] if not steps or (len(steps) - 1) % stride == 0 else [*steps[::stride], steps[-1]]


def _last(log: list[events.Event], kind: type[events.Event]) -> dict[str, Any] | None:
    return next((event_data(event) for event in reversed(log) if isinstance(event, kind)), None)


def is_active(name: str) -> bool:
    """Whether this server trains the run in the folder ``name``."""
    return any(active["run"] == name for active in list(RUNNING.values()))


def _ending(run: RunFolder, log: list[events.Event]) -> events.Event:
    """How the run last ended. A run that was stopped or killed counts as stopped at its newest saved state."""
    final = log[-1] if log else None
    if isinstance(final, events.Done | events.Error):
        return final
    step = newest_step(run.checkpoints)
    return events.Stopped(step, str(state_folder(run.checkpoints, step)) if step else "")


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
