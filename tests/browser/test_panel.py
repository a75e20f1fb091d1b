"""The training panel follows a training, and shows it again after a reload."""

from __future__ import annotations

import json
import os

import pytest

from tests.browser.frontend import Frontend
from tests.browser.looks import Look
from tests.browser.panel import copied, curve, logged, status, training_graph, wait_for
from tests.browser.screens import SCREENSHOTS, pack_errors
from tests.server.comfy_server import Server


@pytest.fixture
def on_canvas(frontend: Frontend, look: Look) -> Frontend:
    """The frontend, if the panel is tested in this look: on the newest ComfyUI with classic and with Vue nodes."""
    if not (look.first or look.vue):
        pytest.skip("one server is enough for the training itself")
    return frontend


def test_panel_shows_a_training_and_remembers_it(on_canvas: Frontend, look: Look, canvas_server: Server) -> None:
    name = "panel_vue" if look.vue else "panel_classic"
    before = len(on_canvas.problems)
    on_canvas.load(training_graph(canvas_server, name=name, epochs=3), name)
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
    assert (large.count(), film.count()) == (2, 4)  # one image for each prompt, and the first prompt's image of every epoch
    newest = large.first.get_attribute("src")
    slider.evaluate("(element) => { element.value = 0; element.dispatchEvent(new Event('input')); }")
    caption = on_canvas.page.locator(".animelora-panel .caption")
    assert large.first.get_attribute("src") != newest
    assert caption.inner_text() == "before training"
    film.nth(2).dispatch_event("click")
    assert caption.inner_text() == "epoch 2"
    assert large.first.get_attribute("src") == film.nth(2).get_attribute("src")
    large.nth(1).dispatch_event("click")  # the strip shows the prompt whose image was clicked
    assert large.nth(1).get_attribute("src") == film.nth(2).get_attribute("src")
    film.last.dispatch_event("click")
    text = on_canvas.page.locator(".animelora-panel").inner_text()
    assert all(word in text for word in ("smoothed", "learning rate", "images/s", "memory"))

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
    on_canvas.load(training_graph(canvas_server, name=name, epochs=3), name)  # the same graph without its stored run
    on_canvas.run_command("Comfy.QueuePrompt")  # ComfyUI's cache answers instead of the node
    wait_for(on_canvas, "panel.chart.data[0].length > 0")
    assert curve(on_canvas) == shown
    assert pack_errors(on_canvas.problems[before:]) == []
    if os.environ.get("UPDATE_SCREENSHOTS"):
        on_canvas.fit()
        on_canvas.screenshot(SCREENSHOTS / f"canvas-panel-{'vue-light' if look.vue else 'classic-dark'}.png")
