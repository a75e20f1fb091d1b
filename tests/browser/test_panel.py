"""The training panel follows a training, shows it again after a reload, and keeps its place in the node."""

from __future__ import annotations

import json

import pytest

from tests.browser.frontend import Frontend
from tests.browser.looks import Look
from tests.browser.panel import (
    TITLED,
    chart_is_drawn,
    copied,
    curve,
    logged,
    node_id,
    opened,
    run_on_disk,
    status,
    suspended,
    training_graph,
    wait_for,
    wrap,
)
from tests.browser.screens import pack_errors, send_event
from tests.server.comfy_server import Server


def node_size(frontend: Frontend) -> list[float]:
    """The size of Train LoRA."""
    (found,) = (node["size"] for node in frontend.inspect()["nodes"] if node["type"] == "AnimeLoRA_TrainLora")
    return [round(length) for length in found]


IN_NODE = """() => {
  const node = window.app.graph._nodes.find((one) => one.animeloraPanel), canvas = window.app.canvas;
  const box = node.animeloraPanel.root.getBoundingClientRect(), frame = canvas.canvas.getBoundingClientRect();
  const [left, top] = canvas.ds.convertOffsetToCanvas([node.pos[0], node.pos[1]]);
  const right = left + node.size[0] * canvas.ds.scale, bottom = top + node.size[1] * canvas.ds.scale;
  return box.width > 100 && box.height > 100 && box.left >= frame.left + left - 1 && box.right <= frame.left + right + 1
    && box.top >= frame.top + top - 1 && box.bottom <= frame.top + bottom + 1;
}"""


def in_node(frontend: Frontend) -> bool:
    """Whether the panel is drawn inside its node."""
    return bool(frontend.page.evaluate(IN_NODE))


def test_panel_shows_a_training_and_remembers_it(on_canvas: Frontend, look: Look, canvas_server: Server) -> None:
    name = "panel_vue" if look.vue else "panel_classic"
    before = len(on_canvas.problems)
    on_canvas.load(training_graph(canvas_server, name=name, epochs=3, checkpoint_every=4), name)
    assert "appear here" in status(on_canvas)
    on_canvas.fit()
    size = node_size(on_canvas)
    assert in_node(on_canvas)
    assert f"{name}" in json.dumps(on_canvas.prompt())
    assert "animelora_panel" not in json.dumps(on_canvas.prompt()), "the panel is no input"

    on_canvas.run_command("Comfy.QueuePrompt")
    with suspended(canvas_server, name):
        wait_for(on_canvas, "panel.live && panel.chart.data[0].length > 0 && !panel.stop.hidden")
    wait_for(on_canvas, "!panel.live && panel.status.textContent.startsWith('done')")
    assert node_size(on_canvas) == size, "the node grew"
    steps = [event for event in logged(canvas_server, name) if event["event"] == "step"]
    shown = curve(on_canvas)
    assert shown[0] == [event["step"] for event in steps]
    assert shown[1] == pytest.approx([event["loss"] for event in steps])
    assert shown[3] == pytest.approx([event["lr"] for event in steps])

    slider = on_canvas.page.locator(".animelora-panel .scrub input")
    assert slider.get_attribute("max") == "3"  # before training and after each of three epochs
    large, prompts, film = (on_canvas.page.locator(f".animelora-panel .{part} img") for part in ("large", "prompts", "film"))
    assert (large.count(), prompts.count(), film.count()) == (1, 2, 4)  # the first prompt's image, one for each prompt, and every epoch's
    newest = large.get_attribute("src")
    slider.evaluate("(element) => { element.value = 0; element.dispatchEvent(new Event('input')); }")
    caption = on_canvas.page.locator(".animelora-panel .caption")
    assert large.get_attribute("src") != newest
    assert caption.inner_text() == "before training"
    film.nth(2).dispatch_event("click")
    assert caption.inner_text() == "epoch 2"
    assert large.get_attribute("src") == film.nth(2).get_attribute("src")
    prompts.nth(1).dispatch_event("click")  # the strip shows the prompt whose image was clicked
    assert large.get_attribute("src") == prompts.nth(1).get_attribute("src") == film.nth(2).get_attribute("src")
    film.last.dispatch_event("click")
    text = on_canvas.page.locator(".animelora-panel").inner_text()
    assert all(word in text for word in ("smoothed", "learning rate", "images/s", "memory", name))
    chart_is_drawn(on_canvas)

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
    on_canvas.load(training_graph(canvas_server, name=name, epochs=3, checkpoint_every=4), name)  # the same graph without its stored run
    on_canvas.run_command("Comfy.QueuePrompt")  # ComfyUI's cache answers instead of the node
    wait_for(on_canvas, "panel.chart.data[0].length > 0")
    assert curve(on_canvas) == shown
    assert pack_errors(on_canvas.problems[before:]) == []
    keeps_its_place(on_canvas, look)
    epochs_are_compared_and_used(on_canvas, canvas_server, name)


def keeps_its_place(frontend: Frontend, look: Look) -> None:
    """The panel stays in its node, with its chart, when the properties panel opens, in a subgraph and in the other rendering."""
    page = frontend.page
    frontend.fit()
    page.evaluate("() => window.app.canvas.selectNodes(window.app.graph._nodes.filter((node) => node.animeloraPanel))")
    toggle = page.get_by_role("button", name="Toggle properties panel")
    toggle.click()
    page.wait_for_timeout(800)
    assert page.get_by_text("animelora_panel").count() == 0
    assert in_node(frontend)
    page.get_by_role("button", name="Close").or_(toggle).first.click()
    page.wait_for_timeout(500)
    assert in_node(frontend)
    if look.vue:
        return
    page.evaluate("() => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', true)")
    page.locator(".lg-node .animelora-panel").wait_for(timeout=30_000)
    chart_is_drawn(frontend)
    page.evaluate("() => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")
    page.locator(".dom-widget .animelora-panel").wait_for(timeout=30_000)
    chart_is_drawn(frontend)
    page.wait_for_function(IN_NODE, timeout=10_000)  # the classic canvas places it with one of the next frames


def epochs_are_compared_and_used(frontend: Frontend, server: Server, name: str) -> None:
    """With the keyboard, an image is enlarged beside the one before training, and the LoRA of its epoch is saved and used."""
    page = frontend.page
    frontend.page.locator(".animelora-panel .large button").focus()
    page.keyboard.press("Enter")
    viewer = page.locator(".animelora-viewer")
    shown = viewer.locator("select").evaluate_all("(menus) => menus.map((menu) => menu.selectedOptions[0].text)")
    assert shown == ["before training", "epoch 3"]
    images = viewer.locator("img").evaluate_all("(images) => images.map((image) => image.src)")
    page.keyboard.press("ArrowLeft")
    assert viewer.locator("img").evaluate_all("(images) => images.map((image) => image.src)")[1] not in images
    viewer.get_by_role("button", name="Save among LoRAs").press("Enter")
    viewer.get_by_text(f"Saved as {name}_epoch_2.safetensors.").wait_for(timeout=30_000)
    assert (server.base / "models" / "loras" / f"{name}_epoch_2.safetensors").is_file()
    viewer.get_by_role("button", name="Use this LoRA").press("Enter")
    viewer.get_by_text("was added").wait_for(timeout=30_000)
    page.keyboard.press("Escape")
    assert viewer.count() == 0
    queued = frontend.prompt()
    (pick,) = [number for number, node in queued.items() if node["class_type"] == "AnimeLoRA_PickEpoch"]
    assert queued[pick]["inputs"]["step"] == 8
    page.evaluate("""() => { for (const type of ["AnimeLoRA_PickEpoch", "AnimeLoRA_LoadLora"])
      window.app.graph.remove(window.app.graph._nodes.find((node) => node.type === type)); }""")


_ENTER = f"""(title) => {{
  const canvas = window.app.canvas, node = window.app.graph._nodes.find((node) => node.subgraph);
  canvas.openSubgraph(node.subgraph, node);
  canvas.ds.scale = 1;
  [canvas.ds.offset[0], canvas.ds.offset[1]] = ({TITLED})(title).pos.map((place) => 100 - place);
  canvas.setDirty(true, true);
}}"""
_LEAVE = "() => window.app.canvas.setGraph(window.app.rootGraph ?? window.app.graph)"


def test_opening_a_subgraph_draws_the_chart_of_the_training_in_it(on_canvas: Frontend, look: Look, canvas_server: Server) -> None:
    name, before = f"inner_{look.slug}", len(on_canvas.problems)
    run = run_on_disk(canvas_server, name, steps=6).name
    opened(on_canvas, canvas_server, name)
    send_event(on_canvas, "animelora.train", event="run", node_id=node_id(on_canvas, name), run=run, name=name)
    on_canvas.fit()
    chart_is_drawn(on_canvas)
    wrap(on_canvas, name)
    inner = f"({TITLED})('{name}').animeloraPanel"
    for _ in range(2):  # it was never laid out the first time, and hidden in between the second time
        on_canvas.page.evaluate(_ENTER, name)
        chart_is_drawn(on_canvas, inner)
        on_canvas.page.evaluate(_LEAVE)
        wait_for(on_canvas, "!panel.root.checkVisibility()", inner)
    assert pack_errors(on_canvas.problems[before:]) == []
