"""The template that opens as a form, and the blueprints in the node library."""

from __future__ import annotations

import pytest

from tests.browser.frontend import Frontend
from tests.browser.looks import Look
from tests.browser.panel import PATIENCE, suspended
from tests.browser.stage import APP, LARGE_IMAGE, LIVE, RESULT, adapt
from tests.server.comfy_server import Server, until

FIELDS = ("folder", "trigger word", "class description", "checkpoint", "name", "epochs", "validation prompts", "prompt")


@pytest.fixture(autouse=True)
def one_look(look: Look) -> None:
    """These run in the first look only."""
    if not look.first or look.comfyui is None or look.comfyui.version == "0.3.64":
        pytest.skip("one frontend with App mode and blueprints is enough")


def test_app_trains_from_its_form_and_shows_images_during_and_after_the_training(frontend: Frontend, canvas_server: Server) -> None:
    page = frontend.page
    frontend.run_command("Comfy.BrowseTemplates")
    dialog = page.locator("[role=dialog]:visible").filter(has_text="animelora").first
    dialog.wait_for(timeout=60_000)
    dialog.get_by_text("animelora", exact=True).first.click()
    dialog.get_by_text(APP).first.click()
    dialog.wait_for(state="hidden", timeout=60_000)
    try:
        for field in FIELDS:
            page.get_by_text(field, exact=True).first.wait_for(timeout=10_000)
        adapt(frontend, AnimeLoRA_TrainLora__epochs=8, AnimeLoRA_TrainLora__name="app_mode")
        before = set(canvas_server.get("/history"))
        page.get_by_role("button", name="Run", exact=True).first.click()
        with suspended(canvas_server, "app_mode", kind="sample"):
            page.wait_for_function(LARGE_IMAGE, arg=LIVE, timeout=PATIENCE)
            assert canvas_server.get("/animelora/running"), "the image appeared after the training"
        until(lambda: set(canvas_server.get("/history")) > before, "the app's run ends")
        (number,) = set(canvas_server.get("/history")) - before
        entry = canvas_server.get("/history")[number]
        assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
        page.wait_for_function(LARGE_IMAGE, arg=RESULT, timeout=30_000)
        assert page.evaluate("() => Object.keys(window.app.nodePreviewImages).every((id) => !window.app.graph.getNodeById(id))")
    finally:
        frontend.run_command("Comfy.ToggleLinear")
        page.locator("#graph-canvas").wait_for(state="visible", timeout=30_000)


@pytest.mark.parametrize(
    ("name", "inner"), [("Train an anime style", "AnimeLoRA_TrainLora"), ("Photo to anime with a LoRA", "AnimeLoRA_AnimeImg2Img")]
)
def test_blueprint_is_found_by_its_name_and_becomes_one_node(frontend: Frontend, name: str, inner: str) -> None:
    page = frontend.page
    page.evaluate("() => window.app.graph.clear()")
    for _ in range(5):  # right after a change of the graph, the canvas may miss a double click
        page.wait_for_timeout(700)
        page.mouse.dblclick(1500, 900)
        page.wait_for_timeout(800)
        if page.evaluate("() => document.activeElement?.tagName === 'INPUT'"):
            break
    page.keyboard.type(name)
    page.wait_for_timeout(1500)
    page.keyboard.press("Enter")
    page.wait_for_function("() => window.app.graph._nodes.length === 1", timeout=30_000)
    page.mouse.click(1200, 600)
    prompt = frontend.prompt()
    kinds = [node["class_type"] for node in prompt.values()]
    assert inner in kinds
    assert len(kinds) == 2
    page.keyboard.press("Escape")  # ends the placement of the node: a later Escape would delete the node of another test with its id
    page.evaluate("() => window.app.graph.clear()")
