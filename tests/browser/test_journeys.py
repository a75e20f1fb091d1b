"""Using the templates, from opening one to dropping an image that it made back on the canvas."""

from __future__ import annotations

import base64
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.browser.frontend import Frontend, in_new_tab
from tests.browser.looks import Look
from tests.browser.panel import PATIENCE, curve, logged, status, suspended, wait_for
from tests.browser.screens import pack_errors, widget_values
from tests.browser.stage import adapt
from tests.server.comfy_server import Server, until
from tests.tools.parameters import mark_long

TEMPLATES = (
    "2 Photo to anime",
    "3 Characters and styles",
    "4 Guidance compared",
    "5 Identity with ControlNet",
    "7 Export for other tools",
    "8 Zero-download tour",
)
EVERYWHERE = TEMPLATES[0]  # runs on every frontend, the others on one to save time
Entry = dict[str, Any]


def queued(frontend: Frontend, server: Server) -> Entry:
    """Press Run, wait for the end and return the history entry. Fails with the errors of server and frontend."""
    before = set(server.get("/history"))
    frontend.run_command("Comfy.QueuePrompt")
    end = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < end:
        new = {key: entry for key, entry in server.get("/history").items() if key not in before}
        if new:
            (entry,) = new.values()
            assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
            return dict(entry)
        frontend.page.wait_for_timeout(200)
    pytest.fail(f"nothing ended; the frontend says {frontend.dialogs()}, the server {server.log()[-1500:]}")


def saved(entry: Entry, server: Server, prefix: str) -> Path:
    """The first image that a Save Image node wrote with a prefix."""
    images = [image for output in entry["outputs"].values() for image in output.get("images", []) if image["type"] == "output"]
    (found, *_) = [image for image in images if image["filename"].startswith(prefix)]
    return server.base / "output" / str(found["subfolder"]) / str(found["filename"])


def drop(frontend: Frontend, picture: Path) -> None:
    """Drop a file on an empty part of the canvas."""
    data = base64.b64encode(picture.read_bytes()).decode()
    handle = frontend.page.evaluate_handle(
        """([data, name]) => {
          const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], name, { type: "image/png" }));
          return transfer;
        }""",
        [data, picture.name],
    )
    for name in ("dragenter", "dragover", "drop"):
        frontend.page.dispatch_event("#graph-canvas", name, {"dataTransfer": handle, "clientX": 900, "clientY": 900})
    frontend.page.wait_for_function("() => window.app.graph._nodes.length > 0", timeout=30_000)
    frontend.page.wait_for_timeout(700)


def clear(frontend: Frontend) -> None:
    """Empty the canvas."""
    frontend.page.evaluate("() => window.app.graph.clear()")
    assert frontend.serialized()["nodes"] == []


@pytest.mark.parametrize("name", mark_long(TEMPLATES, "3 Characters and styles", "4 Guidance compared", "8 Zero-download tour"))
def test_template_runs_and_its_image_restores_it(frontend: Frontend, look: Look, canvas_server: Server, name: str) -> None:
    if name != EVERYWHERE and not look.first:
        pytest.skip("one frontend is enough to run them all")
    before = len(frontend.problems)
    frontend.load(frontend.template("animelora", name), name)
    adapt(frontend)
    frontend.set_widget("EmptyLatentImage", "batch_size", 1)
    kept = frontend.serialized()
    entry = queued(frontend, canvas_server)
    picture = next(image for output in entry["outputs"].values() for image in output.get("images", []) if image["type"] == "output")
    clear(frontend)
    drop(frontend, canvas_server.base / "output" / picture["subfolder"] / picture["filename"])
    back = frontend.serialized()
    assert [node["type"] for node in back["nodes"]] == [node["type"] for node in kept["nodes"]]
    assert widget_values(back) == widget_values(kept)
    assert len(back["links"]) == len(kept["links"])
    assert pack_errors(frontend.problems[before:]) == []


def test_first_lora_is_trained_stopped_reloaded_and_resumed(frontend: Frontend, look: Look, canvas_server: Server) -> None:
    if not (look.first or look.front_end):
        pytest.skip("the oldest and the newest way of drawing is enough for a whole training")
    name = f"journey_{look.slug}"
    frontend.load(frontend.template("animelora", "1 First LoRA from a folder"), name)
    adapt(frontend, AnimeLoRA_TrainLora__name=name, epochs=16, checkpoint_every=8, validate_every=40)
    kept = frontend.serialized()
    frontend.run_command("Comfy.QueuePrompt")
    with ExitStack() as tabs:
        with suspended(canvas_server, name, at_least=2):
            wait_for(frontend, "panel.live && panel.chart.data[0].length >= 2")
            seen = len(curve(frontend)[0])
        with suspended(canvas_server, name, at_least=seen + 1):
            wait_for(frontend, f"panel.live && panel.chart.data[0].length > {seen}")  # it moves
            # if it were open before, it would overwrite the frontend's draft of this graph with an older state
            other = tabs.enter_context(in_new_tab(frontend))
            other.load(kept, name)  # during the training
            wait_for(other, "panel.live && panel.chart.data[0].length > 2 && panel.chart.data[0][0] === 1 && !panel.stop.hidden")
            other.page.locator(".animelora-panel .stop").dispatch_event("click")
        wait_for(other, "!panel.live && panel.status.textContent.startsWith('stopped')")
    wait_for(frontend, "!panel.live && panel.status.textContent.startsWith('stopped')")
    reached = curve(frontend)[0][-1]
    # the child reports that it stops before it has exited
    until(lambda: canvas_server.get("/animelora/running") == {}, "a stopped run is listed as running")

    frontend.reload()
    assert widget_values(frontend.serialized()) == widget_values(kept), "the frontend's own restoring lost something"
    wait_for(frontend, f"panel.chart.data[0].at(-1) >= {reached} && panel.status.textContent.startsWith('stopped')")

    entry = queued(frontend, canvas_server)
    wait_for(frontend, "!panel.live && panel.status.textContent.startsWith('done')")
    starts = [event["start_step"] for event in logged(canvas_server, name) if event["event"] == "plan"]
    assert starts[0] == 0
    assert starts[1] >= 2
    steps = curve(frontend)[0]
    assert steps == list(range(1, len(steps) + 1)), "a step is missing or there twice"
    assert (canvas_server.base / "models" / "loras" / f"{name}.safetensors").is_file()
    picture = saved(entry, canvas_server, "first_lora")
    clear(frontend)
    drop(frontend, picture)
    assert widget_values(frontend.serialized()) == widget_values(kept)
    wait_for(frontend, f"panel.chart.data[0].length === {len(steps)}")  # the curve is restored with the image
    assert status(frontend).startswith("done")

    (run,) = (canvas_server.base / "output" / "animelora" / "runs").glob(f"{name}-*")
    clear(frontend)
    drop(frontend, next(run.glob("samples/*.png")))  # validation images contain the workflow, too
    assert widget_values(frontend.serialized()) == widget_values(kept)


def test_epoch_is_picked_from_the_grid(frontend: Frontend, look: Look, canvas_server: Server) -> None:
    if look.first or look.front_end:
        pytest.skip("the Vue nodes and the oldest ComfyUI do this")
    frontend.load(frontend.template("animelora", "6 Compare epochs"), "epochs")
    adapt(frontend, AnimeLoRA_TrainLora__name=f"pick_{look.slug}", learning_rate=0.05, checkpoint_every=4, validate_every=0)
    first = queued(frontend, canvas_server)
    assert saved(first, canvas_server, "epochs").is_file()

    frontend.set_widget("AnimeLoRA_PickEpoch", "step", 4)
    frontend.set_widget("AnimeLoRA_PickEpoch", "save_as", f"picked_{look.slug}")
    second = queued(frontend, canvas_server)
    (compare,) = [str(node["id"]) for node in frontend.inspect()["nodes"] if node["type"] == "AnimeLoRA_EpochCompare"]
    (cached,) = [data["nodes"] for kind, data in second["status"]["messages"] if kind == "execution_cached"]
    assert compare in cached, "the grid was rendered again"
    last, early = (saved(entry, canvas_server, "picked_epoch").read_bytes() for entry in (first, second))
    assert last != early, "the image does not depend on the picked epoch"
    assert (canvas_server.base / "models" / "loras" / f"picked_{look.slug}.safetensors").is_file()
