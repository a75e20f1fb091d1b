"""Routes for the history in the side bar: one lists runs and waiting trainings, one returns the settings of a run, one the name of
its LoRA in ComfyUI's LoRAs. Two delete: a run, or what it saved at one step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from aiohttp import web
from comfy_api.latest import io
from server import PromptServer

from ....trainer.config.run_config import load_config
from ....trainer.core.errors import UserError
from ....trainer.runs.deleting import Deleted, being_trained, delete_run, delete_step, own_run, published_lora
from ....trainer.runs.run_list import ListedRun, RunList, disk_size
from ..browser import report_new_lora
from ..files.folders import loras_dir, runs_dir
from ..routes import is_active, is_json
from ..training_view import RUNNING, viewable
from ..wording import on_canvas
from .menu_entries import entries
from .run_settings import widget_values
from .waiting import waiting_trainings

_Result = TypeVar("_Result")


def register(train: type[Any], options: Sequence[type[io.ComfyNode]]) -> None:
    """Add the routes to ComfyUI's server, if there is one. ``train`` is the class of Train LoRA, ``options`` are its options nodes."""
    server = getattr(PromptServer, "instance", None)
    if server is None:
        return
    option_nodes = {str(node.define_schema().node_id): node for node in options}
    runs = RunList(runs_dir())
    one_at_a_time = asyncio.Lock()

    @server.routes.get("/animelora/history")
    async def history(_request: web.Request) -> web.Response:
        _, queue = server.prompt_queue.get_current_queue_volatile()
        async with one_at_a_time:
            return web.json_response(await asyncio.to_thread(_history, runs, train, option_nodes, queue))

    @server.routes.get("/animelora/runs/{run}/settings")
    async def settings(request: web.Request) -> web.Response:
        return await _answer(_settings, request.match_info["run"])

    @server.routes.get("/animelora/runs/{run}/published")
    async def published(request: web.Request) -> web.Response:
        return await _answer(_published, request.match_info["run"])

    @server.routes.post("/animelora/runs/{run}/delete")
    async def delete(request: web.Request) -> web.Response:
        data = await _data(request)
        if data is None or not isinstance(data.get("lora"), bool):
            return web.json_response({"error": "no such request"}, status=400)
        return await _answer(_delete, request.match_info["run"], data["lora"])

    @server.routes.post("/animelora/runs/{run}/delete_step")
    async def delete_saved(request: web.Request) -> web.Response:
        data = await _data(request)
        if data is None or type(data.get("step")) is not int:
            return web.json_response({"error": "no such request"}, status=400)
        return await _answer(_delete_step, request.match_info["run"], data["step"])


async def _data(request: web.Request) -> dict[str, Any] | None:
    """The JSON object that a page of this server sent; None for anything else."""
    try:
        data = await request.json() if is_json(request) else None
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


async def _answer(action: Callable[..., dict[str, Any]], *arguments: Any) -> web.Response:
    """What ``action`` returns, in a thread; its error in words."""
    try:
        return web.json_response(await asyncio.to_thread(action, *arguments))
    except UserError as error:
        return web.json_response({"error": on_canvas(str(error))}, status=409 if error.kind == "busy" else 400)
    except OSError as error:
        return web.json_response({"error": f"{error.strerror or error}: {error.filename or ''}".rstrip(": ")}, status=500)


def _history(runs: RunList, train: type[Any], options: Mapping[str, type[io.ComfyNode]], queue: Sequence[Any]) -> dict[str, Any]:
    """All runs, the newest first, their total size, and the waiting trainings."""
    listed = runs.all()
    return {
        "runs": [*_not_begun(listed), *(_row(run) for run in listed)],
        "bytes": disk_size(listed),
        "waiting": waiting_trainings(train, options, queue, listed),
    }


def _row(run: ListedRun) -> dict[str, Any]:
    active = is_active(run.folder.name)
    return {
        "run": run.folder.name,
        "name": run.name,
        "base": run.base,
        "state": "running" if active else run.state,
        "started": run.started,
        "step": run.step,
        "steps": run.steps,
        "epochs": run.epochs,
        "loss": run.loss,
        "view": None if run.image is None else viewable(run.image),
        "states": [{"step": step, "lora": step in run.loras, "state": step in run.states} for step in run.saved],
        "images": run.images,
        "bytes": run.bytes,
    }


def _not_begun(listed: Sequence[ListedRun]) -> list[dict[str, Any]]:
    """The active trainings whose log does not exist yet."""
    known = {run.folder.name for run in listed}
    empty = {"base": "", "state": "running", "started": 0, "step": 0, "steps": 0, "epochs": 0, "loss": None, "view": None}
    new = [active for active in list(RUNNING.values()) if active["run"] not in known]
    return [{"run": each["run"], "name": each["name"], **empty, "states": [], "images": 0, "bytes": 0} for each in new]


def _settings(name: str) -> dict[str, Any]:
    config = load_config(own_run(runs_dir(), name).config)
    found = widget_values(config, entries(config))
    return {
        "values": found.values,
        "needed": found.needed,
        "not_set": [vars(each) for each in found.not_set],
        "dataset": config.dataset.path.replace("\\", "/").rstrip("/").rpartition("/")[2],
    }


def _published(name: str) -> dict[str, Any]:
    lora = published_lora(own_run(runs_dir(), name), str(loras_dir()))
    return {"lora": None if lora is None else lora.name}


def _delete(name: str, with_lora: bool) -> dict[str, Any]:
    _require_idle(name)
    deleted = delete_run(own_run(runs_dir(), name), str(loras_dir()) if with_lora else "")
    report_new_lora()  # menus of runs and LoRAs are read again
    return _counts(deleted)


def _delete_step(name: str, step: int) -> dict[str, Any]:
    _require_idle(name)
    deleted = delete_step(own_run(runs_dir(), name), step)
    report_new_lora()
    return _counts(deleted)


def _require_idle(name: str) -> None:
    if is_active(name):  # also while it waits for its lock
        raise being_trained()


def _counts(deleted: Deleted) -> dict[str, Any]:
    lora = None if deleted.published is None else deleted.published.name
    return {"states": deleted.states, "images": deleted.images, "bytes": deleted.bytes, "lora": lora}
