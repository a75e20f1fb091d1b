"""The training panel does what a person expects: it moves, stops on a click, goes on, and remembers after a reload."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tests.browser.conftest import Look
from tests.browser.frontend import Frontend
from tests.browser.test_workflows import PICTURES, ours
from tests.server.comfy_server import Server
from tests.tools.workflows.canvas import Canvas, Group
from tests.tools.workflows.parts import DEMO_BASE

PROMPTS = (
    "portrait, short blue hair, tan skin, plain yellow background, red hoodie, round green eyes, smile\n"
    "portrait, pink hair, twin tails, light skin, gradient blue background, white shirt, round blue eyes, smile"
)
PATIENCE = 240_000  # milliseconds; a training child needs 6 to 60 seconds to start, depending on what else runs
_PANEL = "window.app.graph._nodes.find((node) => node.animeloraPanel).animeloraPanel"


def training(server: Server, **settings: Any) -> dict[str, Any]:
    """A graph that trains the demo base on drawn portraits."""
    canvas = Canvas("panel", server.get("/object_info"))
    drawn = canvas.node("AnimeLoRA_DemoPictures", count=4)
    prep = canvas.node("AnimeLoRA_DatasetPrep", images=drawn["images"], captions=drawn["captions"], resolution=128, tall=420)
    values: dict[str, Any] = {"rank": 4, "gradient_accumulation": 1, "precision": "fp32", "wide": 440, "validation_prompts": PROMPTS}
    values |= {"learning_rate": 2e-3, "validation_steps": 8, "validation_guidance": 3.0} | settings
    train = canvas.node("AnimeLoRA_TrainLora", dataset=prep["dataset"], checkpoint=DEMO_BASE, **values)
    canvas.row(Group("Training", [[drawn, prep], [train]]))
    return canvas.draw()


def status(frontend: Frontend) -> str:
    """The panel's first line."""
    return str(frontend.page.evaluate(f"() => {_PANEL}.status.textContent"))


def curve(frontend: Frontend) -> list[list[float]]:
    """Steps, loss, smoothed loss and learning rate as the chart holds them."""
    return list(frontend.page.evaluate(f"() => {_PANEL}.chart.data"))


def wait_for(frontend: Frontend, condition: str) -> None:
    """Until a JavaScript expression about ``panel`` holds."""
    frontend.page.wait_for_function(f"() => {{ const panel = {_PANEL}; return {condition}; }}", timeout=PATIENCE, polling=200)


def logged(server: Server, name: str) -> list[dict[str, Any]]:
    """The event log of the one run of a LoRA's name."""
    (log,) = (server.base / "output" / "animelora" / "runs").glob(f"{name}-*/events.jsonl")
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def copied(frontend: Frontend, button: str) -> str:
    """What a button of the panel puts on the clipboard."""
    frontend.page.locator(".animelora-panel button", has_text=button).dispatch_event("click")
    frontend.page.locator(".animelora-panel button", has_text="Copied").wait_for(state="attached")
    text = str(frontend.page.evaluate("() => navigator.clipboard.readText()"))
    frontend.page.locator(".animelora-panel button", has_text=button).wait_for(state="attached")
    return text


@pytest.fixture
def on_canvas(frontend: Frontend, look: Look) -> Frontend:
    """The frontend, where the panel is tested: on the newest ComfyUI in both ways of drawing nodes."""
    if not (look.first or look.vue):
        pytest.skip("one server is enough for the training itself")
    return frontend


def test_it_shows_a_training_and_remembers_it(on_canvas: Frontend, look: Look, canvas_server: Server) -> None:
    name = "panel_vue" if look.vue else "panel_classic"
    before = len(on_canvas.problems)
    on_canvas.load(training(canvas_server, name=name, epochs=3), name)
    assert "appear here" in status(on_canvas)
    assert f"{name}" in json.dumps(on_canvas.prompt())
    assert "animelora_panel" not in json.dumps(on_canvas.prompt()), "the panel is no input"

    on_canvas.run_command("Comfy.QueuePrompt")
    wait_for(on_canvas, "panel.live && panel.chart.data[0].length > 0 && !panel.stop.hidden")
    wait_for(on_canvas, "!panel.live && panel.status.textContent.startsWith('done')")
    steps = [event for event in logged(canvas_server, name) if event["event"] == "step"]
    shown = curve(on_canvas)
    assert shown[0] == [event["step"] for event in steps]
    assert shown[1] == pytest.approx([event["loss"] for event in steps])
    assert shown[3] == pytest.approx([event["lr"] for event in steps])

    slider = on_canvas.page.locator(".animelora-panel .scrub input")
    assert slider.get_attribute("max") == "3"  # before training and after each of three epochs
    large, film = (on_canvas.page.locator(f".animelora-panel .{part} img") for part in ("pictures", "film"))
    assert (large.count(), film.count()) == (2, 4)  # one picture for each prompt, and the first prompt's of every epoch
    newest = large.first.get_attribute("src")
    slider.evaluate("(element) => { element.value = 0; element.dispatchEvent(new Event('input')); }")
    caption = on_canvas.page.locator(".animelora-panel .caption")
    assert large.first.get_attribute("src") != newest
    assert caption.inner_text() == "before training"
    film.nth(2).dispatch_event("click")
    assert caption.inner_text() == "epoch 2"
    assert large.first.get_attribute("src") == film.nth(2).get_attribute("src")
    large.nth(1).dispatch_event("click")  # the strip follows the prompt whose picture was clicked
    assert large.nth(1).get_attribute("src") == film.nth(2).get_attribute("src")
    film.last.dispatch_event("click")
    said = on_canvas.page.locator(".animelora-panel").inner_text()
    assert all(word in said for word in ("smoothed", "learning rate", "images/s", "memory"))

    (run,) = (canvas_server.base / "output" / "animelora" / "runs").glob(f"{name}-*")
    assert copied(on_canvas, "Copy folder") == str(run.resolve())
    settings = json.loads(copied(on_canvas, "Copy settings"))
    assert (settings["name"], settings["epochs"], settings["rank"]) == (name, 3, 4)

    kept = on_canvas.serialized()
    on_canvas.reload()
    on_canvas.load(kept, name)
    wait_for(on_canvas, "panel.chart.data[0].length > 0")
    assert curve(on_canvas) == shown
    assert status(on_canvas).startswith("done")
    on_canvas.load(training(canvas_server, name=name, epochs=3), name)  # the same graph, without the memory of its run
    on_canvas.run_command("Comfy.QueuePrompt")  # ComfyUI's cache answers, the node is not called
    wait_for(on_canvas, "panel.chart.data[0].length > 0")
    assert curve(on_canvas) == shown
    assert ours(on_canvas.problems[before:]) == []
    if os.environ.get("UPDATE_SCREENSHOTS"):
        on_canvas.fit()
        on_canvas.screenshot(PICTURES / f"canvas-panel-{'vue-light' if look.vue else 'classic-dark'}.png")
