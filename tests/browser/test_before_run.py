"""Before a run, the panel says what Run will do and need, corrects a widget with a click, and starts over."""

from __future__ import annotations

import json

from tests.browser.frontend import Frontend
from tests.browser.looks import Look
from tests.browser.panel import training_graph, wait_for
from tests.server.comfy_server import Server

NODE = "AnimeLoRA_TrainLora"
RECORD_NOTIFICATIONS = """() => {
  window.notifications = [];
  window.Notification = class {
    static permission = "default";
    static async requestPermission() { this.permission = "granted"; }
    constructor(title, { body }) { window.notifications.push([title, body]); }
  };
}"""
HIDE = "(hidden) => Object.defineProperty(document, 'hidden', { value: hidden, configurable: true })"


def wait_for_text(frontend: Frontend, words: str) -> None:
    """Wait until the part of the panel about the next run contains words."""
    wait_for(frontend, f"!panel.before.root.hidden && panel.before.root.textContent.includes({words!r})")


def test_panel_forecasts_corrects_and_starts_over(on_canvas: Frontend, look: Look, canvas_server: Server) -> None:
    name = f"before_{look.slug}"
    buttons = on_canvas.page.locator(".animelora-panel .before button")
    graph = training_graph(canvas_server, name=name, epochs=1, alpha=0.5, validate_every=0, validation_prompts="a girl")
    on_canvas.load(graph, name)
    on_canvas.fit()
    wait_for_text(on_canvas, "alpha (0.5) is far from")
    buttons.get_by_text("Use alpha = 4").dispatch_event("click")
    wait_for(on_canvas, "panel.node.widgets.find((each) => each.name === 'alpha').value === 4")
    on_canvas.run_command("Comfy.QueuePrompt")
    wait_for(on_canvas, "panel.ended === 'done' && !panel.live")
    wait_for_text(on_canvas, "uses the finished LoRA")
    on_canvas.set_widget(NODE, "epochs", 2)
    wait_for_text(on_canvas, "continues from step 4 of 8")
    wait_for_text(on_canvas, "4 images · 4 steps · about ")
    wait_for(on_canvas, "!panel.before.warnings.hidden && !panel.before.warnings.open")  # open warnings would hide the images of the run
    buttons.get_by_text("Start over").dispatch_event("click")
    wait_for(on_canvas, "panel.plan?.steps === 8 && panel.ended === 'done' && !panel.live")
    assert start_steps(canvas_server, name) == [0, 0], "it continued"
    assert "animelora_start_over" not in str(on_canvas.serialized())

    on_canvas.set_widget(NODE, "preset", "style-sdxl")
    wait_for_text(on_canvas, "made for another kind of model")
    on_canvas.page.evaluate(RECORD_NOTIFICATIONS)
    on_canvas.page.get_by_role("button", name="Notify me").click()
    on_canvas.page.evaluate(HIDE, True)
    on_canvas.run_command("Comfy.QueuePrompt")
    on_canvas.page.wait_for_function("() => window.notifications.length > 0")
    on_canvas.page.evaluate(HIDE, False)
    ((title, body),) = on_canvas.page.evaluate("() => window.notifications")
    assert title == "Training failed" and "made for another kind of model" in body
    wait_for(on_canvas, "!panel.failure.hidden && panel.failure.textContent.includes('another kind of model')")
    on_canvas.page.keyboard.press("Escape")  # ComfyUI's own dialog
    on_canvas.page.locator(".animelora-panel .failure button").get_by_text("preset = style-sd15").dispatch_event("click")
    wait_for(on_canvas, "panel.failure.hidden && panel.node.widgets.find((each) => each.name === 'preset').value === 'style-sd15'")


EPOCHS_AT = """() => {
  const node = window.app.graph._nodes.find((each) => each.animeloraPanel), canvas = window.app.canvas;
  const epochs = node.widgets.find((each) => each.name === "epochs");
  const [x, y] = canvas.ds.convertOffsetToCanvas([node.pos[0] + 150, node.pos[1] + epochs.y + 10]);
  const frame = canvas.canvas.getBoundingClientRect();
  return [x + frame.left, y + frame.top];
}"""


def test_typed_number_beyond_a_limit_is_corrected_and_reported(on_canvas: Frontend, look: Look, canvas_server: Server) -> None:
    on_canvas.load(training_graph(canvas_server, name=f"limit_{look.slug}", epochs=7), "limit")
    on_canvas.fit()
    page = on_canvas.page
    if look.vue:
        row = page.locator(".lg-node:has(.animelora-panel) .lg-node-widget").filter(has_text="epochs").first
        box = row.locator("input").bounding_box()
        assert box is not None
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    else:
        page.mouse.click(*page.evaluate(EPOCHS_AT))
        page.locator(".graphdialog input").wait_for()
    page.keyboard.press("Control+a")
    page.keyboard.type("0")
    page.keyboard.press("Enter")
    page.get_by_text("0 is outside 1 to 10000. epochs is 1 now.").wait_for()
    wait_for(on_canvas, "panel.node.widgets.find((each) => each.name === 'epochs').value === 1")


def start_steps(server: Server, name: str) -> list[int]:
    """The step at which each run of a name began, the oldest first."""
    logs = (server.base / "output" / "animelora" / "runs").glob(f"{name}-*/events.jsonl")
    lines = [line for log in sorted(logs, key=lambda log: log.stat().st_mtime) for line in log.read_text(encoding="utf-8").splitlines()]
    return [event["start_step"] for line in lines if (event := json.loads(line))["event"] == "plan"]
