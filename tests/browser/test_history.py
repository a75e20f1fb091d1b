"""The history in the side bar, by mouse and by keyboard: runs are listed, opened in the node, compared and deleted."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from demo.drawing.portraits import random_portrait
from demo.drawing.render import render
from tests.browser.frontend import Frontend
from tests.browser.looks import Look
from tests.browser.panel import training_graph, wait_for
from tests.browser.screens import SCREENSHOTS, pack_errors, send_event
from tests.server.comfy_server import Server
from tests.tools.run_folders import make_run
from tests.tools.workflows.parts import DEMO_BASE
from trainer.runs.publish import publish
from trainer.runs.run_folder import RunFolder

TRAIN, LEARNING = "AnimeLoRA_TrainLora", "AnimeLoRA_LearningOptions"


@pytest.fixture
def two_runs(canvas_server: Server, look: Look) -> tuple[RunFolder, RunFolder]:
    """A finished and a stopped run with other settings, the newest of the server."""
    runs, now = canvas_server.base / "output" / "animelora" / "runs", time.time()
    suffix = "" if look.first else f"_{look.slug}"
    first = make_run(
        runs,
        f"my_style{suffix}",
        states=(4, 8),
        start=now + 60,
        network={"rank": 5},
        training={"epochs": 2, "ema_decay": 0.5},
        sample={"prompts": ["a girl", "a cat"]},
    )
    second = make_run(
        runs, f"higher_rank{suffix}", steps=6, states=(4,), start=now + 30, ending="stopped", falls_by=0.07, network={"rank": 6}
    )
    publish(first, str(canvas_server.base / "models" / "loras"))
    for run, styles in ((first, ("photo", "flat", "anime")), (second, ("photo", "pencil"))):
        for epoch, style in enumerate(styles):
            for index in range(2):
                render(random_portrait(7 + index), style, 256).save(run.samples / f"epoch-{epoch:03d}-{index:02d}.png")
    return first, second


def opened_tab(page: Page) -> Any:
    """The tab, opened by a click in the side bar."""
    page.get_by_role("button", name="LoRA runs: past and waiting trainings").click()
    tab = page.get_by_role("region", name="LoRA runs")
    expect(tab).to_be_visible()
    return tab


def row(tab: Any, run: RunFolder) -> Any:
    return tab.locator(".run").filter(has_text=f"{run.name} ·")


def widgets(frontend: Frontend, kind: str) -> dict[str, Any]:
    """The values of the widgets of the one node of a type."""
    (node,) = (node for node in frontend.inspect()["nodes"] if node["type"] == kind)
    return dict(node["widgets"])


def test_history_lists_opens_compares_and_deletes_runs(
    on_canvas: Frontend, look: Look, canvas_server: Server, two_runs: tuple[RunFolder, RunFolder]
) -> None:
    page, (first, second) = on_canvas.page, two_runs
    on_canvas.load(training_graph(canvas_server, name="history"), "history")
    tab = opened_tab(page)
    expect(row(tab, first).locator(".state")).to_have_text("finished · 8 steps")
    expect(row(tab, second).locator(".state")).to_have_text("stopped at step 6 of 8")
    assert tab.locator(".run .name").all_inner_texts()[0].startswith(f"{first.name} · 2 epochs · ")
    assert page.evaluate("(image) => image.decode().then(() => image.naturalWidth)", row(tab, first).locator("img").element_handle()) == 256
    send_event(on_canvas, "animelora.train", event="step", run=second.path.name, step=7, steps=8, loss_average=0.5, node_id="elsewhere")
    expect(row(tab, second).locator(".state")).to_have_text("training · step 7 of 8")
    tab.get_by_role("button", name="Refresh").click()
    expect(row(tab, second).locator(".state")).to_have_text("stopped at step 6 of 8")
    settings_are_opened_in_the_node(on_canvas, tab, first)
    screenshot(on_canvas, look, "history")
    two_are_compared(on_canvas, look, tab, two_runs)
    a_step_and_a_run_are_deleted(page, tab, canvas_server.base / "models" / "loras", first)
    assert second.path.is_dir()
    a_state_is_deleted_from_the_enlarged_image(on_canvas, second)
    assert pack_errors(on_canvas.problems) == []


def settings_are_opened_in_the_node(frontend: Frontend, tab: Any, run: RunFolder) -> None:
    """By keyboard, with an options node that the graph lacks. The checkpoint is no file of this server and is named."""
    page = frontend.page
    row(tab, run).locator(".open").focus()
    page.keyboard.press("Enter")
    expect(row(tab, run).locator(".open")).to_have_attribute("aria-expanded", "true")
    for _ in range(2):  # past the box for comparing
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    note = row(tab, run).locator(".note")
    expect(note).to_contain_text("checkpoint = anime.safetensors (not among the files here)")
    expect(note).to_contain_text("trained on the dataset girls")
    train = widgets(frontend, TRAIN)
    expected = {"name": run.name, "epochs": 2, "rank": 5, "validation_prompts": "a girl\na cat", "checkpoint": DEMO_BASE, "preset": "none"}
    assert {name: train[name] for name in expected} == expected
    assert widgets(frontend, LEARNING)["ema_decay"] == 0.5
    graph = frontend.prompt()
    (number,) = (number for number, node in graph.items() if node["class_type"] == LEARNING)
    (options,) = (node["inputs"]["options"] for node in graph.values() if node["class_type"] == TRAIN)
    assert options == [number, 0]


def two_are_compared(frontend: Frontend, look: Look, tab: Any, runs: tuple[RunFolder, RunFolder]) -> None:
    """By mouse: losses, images of any epoch, and the settings that differ."""
    page = frontend.page
    for run in runs:
        row(tab, run).get_by_role("checkbox").check()
    tab.get_by_role("button", name="Compare", exact=True).click()
    dialog = page.get_by_role("dialog", name="Two runs compared")
    expect(dialog.locator("canvas")).to_be_visible()
    for cells in (["loss", "0.6000", "0.5800"], ["rank", "5", "6"], ["EMA decay", "0.5", "0"], ["dataset", "girls", "girls"]):
        expect(dialog.get_by_role("row", name=" ".join(cells), exact=True)).to_be_visible()
    dialog.get_by_role("combobox", name="Epoch of the first run").select_option("before training")
    for image, name in zip(dialog.get_by_role("img").filter(visible=True).all()[1:], ("epoch-000-00.png", "epoch-001-00.png"), strict=True):
        assert name in str(image.get_attribute("src"))
    screenshot(frontend, look, "runs-compared")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(tab.get_by_role("button", name="Compare", exact=True)).to_be_focused()


def a_step_and_a_run_are_deleted(page: Page, tab: Any, loras: Path, run: RunFolder) -> None:
    """By keyboard, after a question that Escape cancels."""
    row(tab, run).get_by_role("button", name="Delete what is saved at step 4").press("Enter")
    expect(tab.get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(row(tab, run).locator(".note")).to_contain_text("Deleted step 4")
    expect(row(tab, run).locator(".saved li")).to_have_count(1)
    assert not (run.checkpoints / "step-000004").exists()
    remove = row(tab, run).get_by_role("button", name="Delete", exact=True)
    remove.press("Enter")
    expect(tab.get_by_role("alertdialog")).to_contain_text(f"{run.name}.safetensors in models/loras stays unless you tick the box.")
    page.keyboard.press("Escape")
    expect(remove).to_be_focused()
    assert run.path.is_dir()
    remove.press("Enter")
    expect(tab.get_by_role("button", name="Cancel")).to_be_focused()
    for _ in range(2):
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")  # the LoRA, too
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(row(tab, run)).to_have_count(0)
    expect(tab.locator("> .note")).to_contain_text(f"and {run.name}.safetensors from models/loras")
    assert not run.path.exists()
    assert not (loras / f"{run.name}.safetensors").exists()


def a_state_is_deleted_from_the_enlarged_image(frontend: Frontend, run: RunFolder) -> None:
    """By keyboard, after a second press."""
    page = frontend.page
    wait_for(frontend, f"panel.run === '{run.path.name}' || void panel.show('{run.path.name}', false)")
    wait_for(frontend, "panel.saved.length === 1")
    page.locator(".animelora-panel .large button").press("Enter")
    viewer = page.locator(".animelora-viewer")
    remove = viewer.get_by_role("button", name="Delete state")
    remove.press("Enter")
    expect(viewer.get_by_role("status")).to_contain_text("Press again to delete the LoRA of epoch 1, and its state if there is one.")
    page.keyboard.press("Escape")
    page.locator(".animelora-panel .large button").press("Enter")
    remove.press("Enter")  # the first press since the images were opened
    expect(viewer.get_by_role("status")).to_contain_text("Press again")
    assert (run.checkpoints / "step-000004").is_dir()
    remove.press("Enter")
    expect(viewer.get_by_role("status")).to_contain_text("Deleted epoch 1")
    expect(remove).to_be_disabled()
    assert not (run.checkpoints / "step-000004").exists()
    page.keyboard.press("Escape")


def screenshot(frontend: Frontend, look: Look, name: str) -> None:
    """A small page for the documents, of the first look."""
    if not os.environ.get("UPDATE_SCREENSHOTS") or not look.first:
        return
    frontend.page.set_viewport_size({"width": 1280, "height": 720})
    frontend.page.wait_for_timeout(500)
    frontend.screenshot(SCREENSHOTS / f"canvas-{name}.png")
    frontend.page.set_viewport_size({"width": 2400, "height": 1350})
