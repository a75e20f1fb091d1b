"""Takes the documentation's screenshots of the training panel: ``python -m tests.browser.panel_screenshots http://127.0.0.1:8188``.

One training of the embedded demo base, of a few minutes on a CPU, in the running ComfyUI at that address. Run it where no training of
``NAME`` is saved yet: the first screenshot shows a run from the beginning.
"""

from __future__ import annotations

import sys
from io import BytesIO
from typing import Any

import requests
from playwright.sync_api import FloatRect

from demo.drawing.portraits import random_portrait
from demo.drawing.render import render
from tests.browser.frontend import Frontend, opened
from tests.browser.panel import PATIENCE, PROMPTS, panel_value, wait_for
from tests.browser.screens import SCREENSHOTS
from tests.browser.stage import APP, LARGE_IMAGE, LIVE, adapt
from tests.tools.workflows.canvas import Canvas, Group
from tests.tools.workflows.parts import DEMO_BASE

NAME, TRIGGER = "my_anime_style", "demoAnimeStyle"
TRAIN = "AnimeLoRA_TrainLora"
EPOCHS, PER_EPOCH, DURING = 12, 3, 20  # DURING: the step at which the training is shown
MARGIN = 28  # pixels around a node, for the badge above it
LOOK_AT = """([type, zoom]) => {
  const canvas = window.app.canvas, node = window.app.graph._nodes.find((each) => each.type === type);
  canvas.deselectAll?.();
  canvas.ds.scale = zoom;
  [canvas.ds.offset[0], canvas.ds.offset[1]] = [160 / zoom - node.pos[0], 160 / zoom - node.pos[1]];
  canvas.setDirty(true, true);
  canvas.draw(true, true);
  const top = window.LiteGraph.NODE_TITLE_HEIGHT, frame = canvas.canvas.getBoundingClientRect();
  return { x: frame.left + 160, y: frame.top + 160 - top * zoom, width: node.size[0] * zoom, height: (node.size[1] + top) * zoom };
}"""


def main() -> int:
    """Train, and take the screenshots in both renderings."""
    url = sys.argv[1].rstrip("/")
    with opened(url, width=1280, height=720) as page:
        page.load(_graph(url), NAME)
        _before(page)
        _during(page)
        _after(page)
        trained = page.serialized()
        _continued(page)
        _refused(page)
    with opened(url, width=1280, height=720) as page:
        _app(page, url)
    with opened(url, width=1280, height=720, vue=True, light=True) as page:
        page.load(trained, NAME)
        _wait_for_forecast(page, "uses the finished LoRA")
        _save_node(page, "panel-vue-light")
    return 0


def _graph(url: str) -> dict[str, Any]:
    """Six drawn portraits, prepared and trained on, with a weak alpha."""
    canvas = Canvas("panel screenshots", requests.get(f"{url}/object_info", timeout=60).json())
    drawn = canvas.node("AnimeLoRA_DemoPictures", count=6)
    words: dict[str, Any] = {"trigger_word": TRIGGER, "class_description": "portrait"}
    prep = canvas.node("AnimeLoRA_DatasetPrep", images=drawn["images"], captions=drawn["captions"], resolution=256, tall=420, **words)
    shown = canvas.node("PreviewImage", images=prep["contact_sheet"])
    prompts = "\n".join(f"{TRIGGER} {prompt}" for prompt in PROMPTS.split("\n"))
    values: dict[str, Any] = {"name": NAME, "epochs": EPOCHS, "rank": 8, "alpha": 1.0, "batch_size": 2, "learning_rate": 2e-3}
    values |= {"gradient_accumulation": 1, "checkpoint_every": PER_EPOCH, "schedule": "constant", "warmup_steps": 0}
    values |= {"validate_every": 1, "validation_prompts": prompts, "validation_steps": 12, "validation_guidance": 2.0, "wide": 760}
    train = canvas.node(TRAIN, dataset=prep["dataset"], checkpoint=DEMO_BASE, **values)
    canvas.row(Group("Training", [[drawn, prep], [train, shown]]))
    return canvas.draw()


def _before(page: Frontend) -> None:
    """The forecast before the first run, with a warning. Dataset Prep has run."""
    page.page.evaluate("() => window.app.canvas.selectNodes(window.app.graph._nodes.filter((node) => node.type === 'PreviewImage'))")
    page.run_command("Comfy.QueueSelectedOutputNodes")
    _wait_for_forecast(page, "from the beginning")
    _save_node(page, "before-run")


def _during(page: Frontend) -> None:
    """The panel during the training, with an alpha that the warning's button has set."""
    page.page.locator(".animelora-panel .before button").get_by_text("Use alpha = 8").dispatch_event("click")
    page.run_command("Comfy.QueuePrompt")
    wait_for(page, f"panel.live && panel.step?.step >= {DURING} && panel.status.textContent.startsWith('step')")
    _save_node(page, "panel-buttons")


def _after(page: Frontend) -> None:
    """The panel after the training, and the last epoch enlarged, with the question of Delete state."""
    wait_for(page, "panel.ended === 'done' && !panel.live")
    _wait_for_forecast(page, "uses the finished LoRA")
    _save_node(page, "panel-classic-dark")
    page.page.locator(".animelora-panel .large button").focus()
    page.page.keyboard.press("Enter")
    viewer = page.page.locator(".animelora-viewer")
    viewer.get_by_role("button", name="Delete state").click()
    viewer.get_by_text("Press again").wait_for()
    _save(page, "epochs-enlarged")
    page.page.keyboard.press("Escape")


def _continued(page: Frontend) -> None:
    """The forecast of a longer run."""
    page.set_widget(TRAIN, "epochs", EPOCHS + 4)
    _wait_for_forecast(page, f"continues from step {EPOCHS * PER_EPOCH}")
    _save_node(page, "before-run-continues")


def _refused(page: Frontend) -> None:
    """A training that failed, with the button that corrects it."""
    page.set_widget(TRAIN, "preset", "style-sdxl")
    _wait_for_forecast(page, "would fail")
    page.run_command("Comfy.QueuePrompt")
    wait_for(page, "!panel.failure.hidden")
    _save_node(page, "error")


def _app(page: Frontend, url: str) -> None:
    """The template in App mode while it trains on a folder of portraits. The App shows the image itself, without the panel."""
    folder, seeds = "portraits", range(6)
    for seed in seeds:
        drawn = BytesIO()
        render(random_portrait(seed), "anime", 256).save(drawn, format="PNG")
        sent = {"image": (f"{seed}.png", drawn.getvalue(), "image/png")}
        requests.post(f"{url}/upload/image", files=sent, data={"subfolder": folder, "overwrite": "true"}, timeout=60).raise_for_status()
    page.reload()  # the menu of folders is read with the nodes
    page.run_command("Comfy.BrowseTemplates")
    dialog = page.page.locator("[role=dialog]:visible").filter(has_text="animelora").first
    dialog.get_by_text("animelora", exact=True).first.click()
    dialog.get_by_text(APP).first.click()
    dialog.wait_for(state="hidden")
    page.page.get_by_text("Number of runs").wait_for()  # the form is there, and the graph with its own Run button is gone
    values: dict[str, Any] = {"DatasetPrep__folder": folder, "DatasetPrep__resolution": 256, "TrainLora__epochs": EPOCHS}
    values |= {"TrainLora__validation_prompts": PROMPTS.split("\n")[1], "TrainLora__validation_steps": 12, "TrainLora__learning_rate": 2e-3}
    adapt(page, **{f"AnimeLoRA_{name}": value for name, value in values.items()})
    page.page.get_by_role("button", name="Run", exact=True).filter(visible=True).first.click()
    page.page.wait_for_function(LARGE_IMAGE, arg=LIVE, timeout=PATIENCE)
    page.page.wait_for_timeout(1000)
    page.screenshot(SCREENSHOTS / "canvas-app-training.png")
    print("app-training", flush=True)
    page.run_command("Comfy.Interrupt")


def _wait_for_forecast(page: Frontend, words: str) -> None:
    wait_for(page, f"!panel.before.root.hidden && panel.before.headline.textContent.includes({words!r})")


def _save_node(page: Frontend, name: str) -> None:
    """The node Train LoRA alone. The window is larger for it, so that ComfyUI's own messages lie beside it."""
    page.page.set_viewport_size({"width": 1700, "height": 1000})
    page.page.wait_for_timeout(500)
    box = page.page.evaluate(LOOK_AT, [TRAIN, 1.2])
    page.page.wait_for_timeout(1000)
    clip: FloatRect = {
        "x": box["x"] - MARGIN,
        "y": box["y"] - MARGIN,
        "width": box["width"] + 2 * MARGIN,
        "height": box["height"] + 2 * MARGIN,
    }
    _save(page, name, clip)
    page.page.set_viewport_size({"width": 1280, "height": 720})


def _save(page: Frontend, name: str, clip: FloatRect | None = None) -> None:
    page.page.wait_for_timeout(1000)
    page.screenshot(SCREENSHOTS / f"canvas-{name}.png", clip=clip)
    print(f"{name}: {panel_value(page, 'panel.status.textContent')}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
