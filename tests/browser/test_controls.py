"""The buttons of the panel ask a training for something, and the panel says what Run will do next."""

from __future__ import annotations

from tests.browser.frontend import Frontend
from tests.browser.looks import Look
from tests.browser.panel import logged, status, training_graph, wait_for
from tests.server.comfy_server import Server, until


def test_buttons_of_the_panel_reach_the_training(on_canvas: Frontend, look: Look, canvas_server: Server) -> None:
    name = f"controls_{look.slug}"
    graph = training_graph(canvas_server, name=name, epochs=500, validate_every=0, validation_prompts="a girl")
    on_canvas.load(graph, name)
    on_canvas.fit()
    buttons = on_canvas.page.locator(".animelora-panel .controls button")

    def click(label: str) -> None:
        buttons.get_by_text(label, exact=True).dispatch_event("click")

    def requested(action: str) -> bool:
        return any(event["event"] == "requested" and event["action"] == action for event in logged(canvas_server, name))

    on_canvas.run_command("Comfy.QueuePrompt")
    wait_for(on_canvas, "panel.live && panel.step && !panel.controls.row.hidden")
    click("Pause")
    wait_for(on_canvas, "panel.controls.pause.textContent === 'Resume'")
    wait_for(on_canvas, "panel.status.textContent === 'paused'")
    click("Save now")
    until(lambda: requested("save_now"), "it did not save")
    on_canvas.page.evaluate(
        """() => { const node = window.app.graph._nodes.find((node) => node.animeloraPanel);
        node.widgets.find((widget) => widget.name === "validation_prompts").value = "a boy"; }"""
    )
    wait_for(on_canvas, "!panel.controls.edit.hidden")
    click("Use edited prompts")
    wait_for(on_canvas, "panel.controls.edit.hidden")
    click("Resume")
    wait_for(on_canvas, "panel.controls.pause.textContent === 'Pause'")
    click("Stop after this epoch")
    wait_for(on_canvas, "!panel.live && panel.status.textContent.startsWith('stopped at step')")
    step = next(event["step"] for event in logged(canvas_server, name) if event["event"] == "stopped")
    assert str(step) in status(on_canvas)
    # the prompts of the node are now others than those of the run: that continues the run, and changes no weight
    wait_for(on_canvas, f"panel.controls.next.textContent.startsWith('Run continues from step {step} of ')")
    on_canvas.page.evaluate(
        """() => { const node = window.app.graph._nodes.find((node) => node.animeloraPanel);
        node.widgets.find((widget) => widget.name === "rank").value = 8; }"""
    )
    wait_for(on_canvas, "panel.controls.next.textContent.startsWith('Run starts over')")
