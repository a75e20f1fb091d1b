"""The buttons of the panel ask a training for something."""

from __future__ import annotations

from tests.browser.frontend import Frontend
from tests.browser.looks import Look
from tests.browser.panel import logged, training_graph, wait_for
from tests.server.comfy_server import Server, until


def test_pause_in_the_panel_reaches_the_training(on_canvas: Frontend, look: Look, canvas_server: Server) -> None:
    name = f"controls_{look.slug}"
    graph = training_graph(canvas_server, name=name, epochs=500, validate_every=0, validation_prompts="a girl")
    on_canvas.load(graph, name)
    on_canvas.fit()
    buttons = on_canvas.page.locator(".animelora-panel .controls button")

    def requested(action: str) -> bool:
        return any(event["event"] == "requested" and event["action"] == action for event in logged(canvas_server, name))

    on_canvas.run_command("Comfy.QueuePrompt")
    wait_for(on_canvas, "panel.live && panel.step && !panel.controls.row.hidden")
    buttons.get_by_text("Pause", exact=True).dispatch_event("click")
    until(lambda: requested("pause"), "it did not pause")
    wait_for(on_canvas, "panel.status.textContent.startsWith('paused')")
    canvas_server.clear_queue()
