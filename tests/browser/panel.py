"""The training panel in the browser: a graph that trains, and what the panel shows."""

from __future__ import annotations

import json
from typing import Any

from tests.browser.frontend import Frontend
from tests.server.comfy_server import Server
from tests.server.graphs import seed_of
from tests.tools.workflows.canvas import Canvas, Group
from tests.tools.workflows.parts import DEMO_BASE

PROMPTS = (
    "portrait, short blue hair, tan skin, plain yellow background, red hoodie, round green eyes, smile\n"
    "portrait, pink hair, twin tails, light skin, gradient blue background, white shirt, round blue eyes, smile"
)
PATIENCE = 240_000  # milliseconds; a training child takes 6 to 60 seconds to start, depending on the load
_PANEL = "window.app.graph._nodes.find((node) => node.animeloraPanel).animeloraPanel"


def training_graph(server: Server, **settings: Any) -> dict[str, Any]:
    """A graph that trains the demo base on drawn portraits."""
    canvas = Canvas("panel", server.get("/object_info"))
    drawn = canvas.node("AnimeLoRA_DemoPictures", count=4)
    prep = canvas.node("AnimeLoRA_DatasetPrep", images=drawn["images"], captions=drawn["captions"], resolution=128, tall=420)
    values: dict[str, Any] = {"rank": 4, "gradient_accumulation": 1, "precision": "fp32", "wide": 440, "validation_prompts": PROMPTS}
    values |= {"learning_rate": 2e-3, "validation_steps": 8, "validation_guidance": 3.0}
    values |= {"training_seed": seed_of(settings.get("name", ""))} | settings
    train = canvas.node("AnimeLoRA_TrainLora", dataset=prep["dataset"], checkpoint=DEMO_BASE, **values)
    canvas.row(Group("Training", [[drawn, prep], [train]]))
    return canvas.draw()


def status(frontend: Frontend) -> str:
    """The panel's first line."""
    return str(frontend.page.evaluate(f"() => {_PANEL}.status.textContent"))


def curve(frontend: Frontend) -> list[list[float]]:
    """The chart's steps, losses, smoothed losses and learning rates."""
    return list(frontend.page.evaluate(f"() => {_PANEL}.chart.data"))


def wait_for(frontend: Frontend, condition: str) -> None:
    """Wait until a JavaScript expression about ``panel`` holds."""
    frontend.page.wait_for_function(f"() => {{ const panel = {_PANEL}; return {condition}; }}", timeout=PATIENCE, polling=200)


def logged(server: Server, name: str) -> list[dict[str, Any]]:
    """The event log of the one run of a LoRA's name."""
    (log,) = (server.base / "output" / "animelora" / "runs").glob(f"{name}-*/events.jsonl")
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def copied(frontend: Frontend, button: str) -> str:
    """Click a button of the panel and return the clipboard."""
    frontend.page.locator(".animelora-panel button", has_text=button).dispatch_event("click")
    frontend.page.locator(".animelora-panel button", has_text="Copied").wait_for(state="attached")
    text = str(frontend.page.evaluate("() => navigator.clipboard.readText()"))
    frontend.page.locator(".animelora-panel button", has_text=button).wait_for(state="attached")
    return text
