"""Choosing a preset in Train LoRA fills the visible widgets, and later changes to them are what trains."""

from __future__ import annotations

import os
from typing import Any

from tests.browser.frontend import Frontend
from tests.browser.looks import Look
from tests.browser.screens import SCREENSHOTS, pack_errors
from tests.server.comfy_server import Server
from tests.tools.workflows.canvas import Canvas, Group
from tests.tools.workflows.parts import CHECKPOINT
from trainer.config import presets

_NODE = "window.app.graph._nodes.find((node) => node.comfyClass === 'AnimeLoRA_{kind}')"
# The centre of a widget on the page, in the classic rendering.
_PLACE = """(name) => {
  const node = window.app.graph._nodes.find((one) => one.comfyClass === 'AnimeLoRA_TrainLora');
  const canvas = window.app.canvas, widget = node.widgets.find((one) => one.name === name);
  const box = canvas.canvas.getBoundingClientRect(), scale = canvas.ds.scale, offset = canvas.ds.offset;
  const y = node.pos[1] + (widget.y ?? widget.last_y) + 10, x = node.pos[0] + node.size[0] / 2;
  return [box.left + (x + offset[0]) * scale, box.top + (y + offset[1]) * scale];
}"""


def graph(server: Server, *, options: bool = False) -> dict[str, Any]:
    """Demo Pictures, Dataset Prep and Train LoRA, optionally with Train Options connected, and an unconnected Machine Options."""
    canvas = Canvas("presets", server.get("/object_info"))
    drawn = canvas.node("AnimeLoRA_DemoPictures", count=4)
    prep = canvas.node("AnimeLoRA_DatasetPrep", images=drawn["images"], captions=drawn["captions"], resolution=128, tall=420)
    extra = canvas.node("AnimeLoRA_TrainOptions", wide=420)
    links: dict[str, Any] = {"options": extra["options"]} if options else {}
    train = canvas.node("AnimeLoRA_TrainLora", dataset=prep["dataset"], checkpoint=CHECKPOINT, name="preset", wide=420, **links)
    machine = canvas.node("AnimeLoRA_MachineOptions", wide=420)
    canvas.row(Group("Preset", [[drawn, prep], [extra, machine], [train]]))
    return canvas.draw()


def shown(frontend: Frontend, kind: str = "TrainLora") -> dict[str, Any]:
    """Widgets of a node by name."""
    return dict(frontend.page.evaluate(f"() => Object.fromEntries({_NODE.format(kind=kind)}.widgets.map((one) => [one.name, one.value]))"))


def choose(frontend: Frontend, look: Look, name: str) -> None:
    """Choose a preset in the menu with the mouse."""
    page = frontend.page
    frontend.fit()
    if look.vue:
        row = page.locator(".lg-node-widget, [data-testid=node-widget]").filter(has_text="preset").first
        row.locator("[role=combobox], button").first.click()
        page.get_by_role("option", name=name, exact=True).first.click()
    else:
        page.mouse.click(*page.evaluate(_PLACE, "preset"))
        page.locator(".litecontextmenu .litemenu-entry").filter(has_text=name).first.click()
    page.wait_for_function(f"() => {_NODE.format(kind='TrainLora')}.widgets.find((one) => one.name === 'preset').value === '{name}'")
    page.wait_for_timeout(700)


def test_preset_fills_widgets_and_later_changes_win(frontend: Frontend, look: Look, canvas_server: Server) -> None:
    before = len(frontend.problems)
    frontend.load(graph(canvas_server, options=True), "presets")
    choose(frontend, look, "concept-sdxl")
    expected = canvas_server.get("/animelora/presets")["concept-sdxl"]
    values = shown(frontend)
    assert {key: values[key] for key in expected["AnimeLoRA_TrainLora"]} == expected["AnimeLoRA_TrainLora"]
    assert values["rank"] == presets.values("concept-sdxl")["network.rank"]
    options = shown(frontend, "TrainOptions")
    assert {key: options[key] for key in expected["AnimeLoRA_TrainOptions"]} == expected["AnimeLoRA_TrainOptions"]
    if os.environ.get("UPDATE_SCREENSHOTS") and look.comfyui is not None and look.comfyui.version != "0.3.64":
        frontend.screenshot(SCREENSHOTS / f"canvas-preset-{'vue-light' if look.vue else 'classic-dark'}.png")

    choose(frontend, look, "style-sd15")
    values = shown(frontend)
    assert values["targets"] == presets.values("style-sd15")["network.targets"]
    frontend.page.evaluate(f"() => {{ {_NODE.format(kind='TrainLora')}.widgets.find((one) => one.name === 'rank').value = 5; }}")
    sent = next(node["inputs"] for node in frontend.prompt().values() if node["class_type"] == "AnimeLoRA_TrainLora")
    assert (sent["rank"], sent["preset"], sent["learning_rate"]) == (5, "style-sd15", 1e-4)

    kept = frontend.serialized()
    frontend.load(kept, "presets again")
    assert shown(frontend)["rank"] == 5, "loading a saved graph must not fill it again"
    assert pack_errors(frontend.problems[before:]) == []


def plug(frontend: Frontend, kind: str, into: str) -> None:
    """Link an options node to the options input of another node."""
    source, target = _NODE.format(kind=kind), _NODE.format(kind=into)
    frontend.page.evaluate(f"() => {source}.connect(0, {target}, {target}.inputs.findIndex((one) => one.name === 'options'))")


def change(frontend: Frontend, kind: str, name: str, value: Any) -> None:
    """Set a widget as a user does."""
    frontend.set_widget(f"AnimeLoRA_{kind}", name, value)


def wait_until(frontend: Frontend, kind: str, name: str, value: Any) -> None:
    """Wait until a widget of a node has a value."""
    node = _NODE.format(kind=kind)
    frontend.page.wait_for_function(
        f"([name, value]) => {node}.widgets.find((one) => one.name === name).value === value", arg=[name, value], timeout=10_000
    )


def toasts(frontend: Frontend) -> list[str]:
    """The texts of the toast messages, which are then closed."""
    page = frontend.page
    page.wait_for_timeout(500)
    shown = page.locator(".p-toast-message, li[data-swipe-direction]")  # of PrimeVue; of Reka, in newer frontends
    texts: list[str] = shown.all_inner_texts()
    shown.locator("button").evaluate_all("(buttons) => { for (const button of buttons) button.click(); }")
    shown.first.wait_for(state="detached")
    return texts


def test_preset_fills_options_node_connected_later(frontend: Frontend, look: Look, canvas_server: Server) -> None:
    frontend.load(graph(canvas_server), "presets")
    choose(frontend, look, "style-sd15")
    assert shown(frontend, "TrainOptions")["min_snr_gamma"] == 0, "not connected, so not touched"
    toasts(frontend)
    plug(frontend, "TrainOptions", "TrainLora")
    wait_until(frontend, "TrainOptions", "min_snr_gamma", 5)
    assert ["style-sd15" in text and "Values filled in: 2." in text for text in toasts(frontend)] == [True]


def test_preset_fills_the_far_end_of_an_options_chain(frontend: Frontend, canvas_server: Server) -> None:
    frontend.load(graph(canvas_server, options=True), "presets")
    change(frontend, "TrainLora", "preset", "style-sd15")
    wait_until(frontend, "TrainOptions", "min_snr_gamma", 5)
    toasts(frontend)
    assert shown(frontend, "MachineOptions")["memory"] == "none"
    plug(frontend, "MachineOptions", "TrainOptions")
    wait_until(frontend, "MachineOptions", "memory", "auto")
    assert ["Values filled in: 1." in text for text in toasts(frontend)] == [True]


def test_chosen_values_survive_reconnecting_and_pasting(frontend: Frontend, canvas_server: Server) -> None:
    before = len(frontend.problems)
    frontend.load(graph(canvas_server, options=True), "presets")
    change(frontend, "TrainLora", "preset", "style-sd15")
    wait_until(frontend, "TrainOptions", "min_snr_gamma", 5)
    plug(frontend, "MachineOptions", "TrainOptions")
    wait_until(frontend, "MachineOptions", "memory", "auto")
    change(frontend, "TrainLora", "epochs", 3)
    change(frontend, "TrainOptions", "min_snr_gamma", 3)
    change(frontend, "TrainOptions", "noise_offset", 0)  # the node's default, chosen explicitly
    change(frontend, "MachineOptions", "memory", "8 GB")
    toasts(frontend)

    plug(frontend, "MachineOptions", "TrainOptions")
    plug(frontend, "TrainOptions", "TrainLora")
    assert toasts(frontend) == []
    values = shown(frontend, "TrainOptions")
    assert (values["min_snr_gamma"], values["noise_offset"], shown(frontend, "MachineOptions")["memory"]) == (3, 0, "8 GB")

    kinds = ["AnimeLoRA_TrainLora", "AnimeLoRA_TrainOptions", "AnimeLoRA_MachineOptions"]
    frontend.page.evaluate(
        """(kinds) => {
          const canvas = window.app.canvas, graph = window.app.graph;
          canvas.selectItems(graph._nodes.filter((node) => kinds.includes(node.comfyClass)));
          canvas.copyToClipboard();
          canvas.pasteFromClipboard();
        }""",
        kinds,
    )
    texts = toasts(frontend)
    both = frontend.page.evaluate(
        """(wanted) => wanted.map(([kind, name]) => window.app.graph._nodes.filter((node) => node.comfyClass === kind)
            .map((node) => node.widgets.find((widget) => widget.name === name).value))""",
        [[kinds[0], "epochs"], [kinds[1], "min_snr_gamma"], [kinds[2], "memory"]],
    )
    assert both == [[3, 3], [3, 3], ["8 GB", "8 GB"]]
    # in a pasted node, a default that was chosen cannot be told from an untouched one: it is filled in, and the toast reports it
    assert ["Values filled in: 1." in each for each in texts] == [True]
    assert pack_errors(frontend.problems[before:]) == []
