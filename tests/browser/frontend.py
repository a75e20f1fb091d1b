"""ComfyUI's real frontend in a real Chromium."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from PIL import Image
from playwright.sync_api import ConsoleMessage, FloatRect, Page, sync_playwright

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
_READY = "() => window.app?.graph && window.app?.canvas && document.querySelector('#graph-canvas')"

# Nodes of web/ show the values of a loaded graph on timers of 200 and 300 ms; a timer that is set later ends after theirs.
_SETTLED = """async () => {
  await new Promise((done) => setTimeout(done, 300));
  for (let frame = 0; frame < 2; frame++) await new Promise((done) => requestAnimationFrame(done));
}"""

# The loaded graph: nodes, whether their type is installed, their sizes, and dangling links.
_INSPECT = """() => {
  const graph = window.app.graph;
  const ids = new Set(graph._nodes.map((node) => node.id));
  const links = graph.links instanceof Map ? [...graph.links.values()] : Object.values(graph.links);
  const dangling = links.filter((link) => {
    const from = graph.getNodeById(link.origin_id), to = graph.getNodeById(link.target_id);
    return !from || !to || to.inputs?.[link.target_slot]?.link !== link.id
      || !from.outputs?.[link.origin_slot]?.links?.includes(link.id);
  }).map((link) => link.id);
  const unlinked = graph._nodes.flatMap((node) => (node.inputs ?? []).filter((input) => input.link != null)
    .filter((input) => !links.some((link) => link.id === input.link)).map((input) => `${node.id}.${input.name}`));
  return {
    nodes: graph._nodes.map((node) => ({
      id: node.id, type: node.type, title: node.title, pos: [...node.pos], size: [...node.size],
      needs: [...node.computeSize()], missing: !!node.has_errors || !(node.type in window.LiteGraph.registered_node_types),
      widgets: (node.widgets ?? []).map((widget) => [widget.name, widget.value]),
    })),
    groups: graph._groups.map((group) => ({title: group.title, bounds: [...group._pos, ...group._size]})),
    links: links.length, dangling: [...dangling, ...unlinked], known: [...ids].length,
  };
}"""
_FIT = """(margin) => {
  const canvas = window.app.canvas, graph = window.app.graph;
  const boxes = [...graph._nodes.map((n) => [n.pos[0], n.pos[1] - 30, n.pos[0] + n.size[0], n.pos[1] + n.size[1]]),
                 ...graph._groups.map((g) => [g._pos[0], g._pos[1], g._pos[0] + g._size[0], g._pos[1] + g._size[1]])];
  const left = Math.min(...boxes.map((b) => b[0])), top = Math.min(...boxes.map((b) => b[1]));
  const right = Math.max(...boxes.map((b) => b[2])), bottom = Math.max(...boxes.map((b) => b[3]));
  const width = window.innerWidth - margin[0] - margin[2], height = window.innerHeight - margin[1] - margin[3];
  const scale = Math.min(width / (right - left), height / (bottom - top));
  canvas.ds.scale = scale;
  canvas.ds.offset[0] = margin[0] / scale - left + (width / scale - (right - left)) / 2;
  canvas.ds.offset[1] = margin[1] / scale - top + (height / scale - (bottom - top)) / 2;
  canvas.setDirty(true, true);
  canvas.draw(true, true);
}"""
_SET = """([kind, name, value]) => {
  for (const node of window.app.graph._nodes.filter((node) => node.type === kind)) {
    const widget = node.widgets.find((widget) => widget.name === name);
    widget.value = value;
    widget.callback?.(value);
  }
}"""
_MARGINS = [80, 70, 30, 70]  # left, top, right, bottom: the frontend's own bars


def find_chromium() -> str | None:
    """The path of Chromium, or None."""
    return next((found for name in CHROMIUM_NAMES if (found := shutil.which(name))), None)


@dataclass
class Frontend:
    """An open frontend. ``problems`` are console errors and uncaught exceptions so far."""

    page: Page
    url: str
    problems: list[str] = field(default_factory=list)

    def load(self, graph: dict[str, Any], name: str) -> dict[str, Any]:
        """Load a graph as dropping its file does, and inspect it."""
        self.page.evaluate("async ([graph, name]) => await window.app.loadGraphData(graph, true, true, name)", [graph, name])
        self.page.wait_for_function("(count) => window.app.graph._nodes.length === count", arg=len(graph["nodes"]))
        self.page.evaluate(_SETTLED)
        return self.inspect()

    def template(self, pack: str, name: str) -> dict[str, Any]:
        """A workflow as the template browser fetches it."""
        url = f"/api/workflow_templates/{pack}/{name}.json"
        return dict(self.page.evaluate("async (url) => await (await fetch(url)).json()", url))

    def serialized(self) -> dict[str, Any]:
        """The graph as the frontend saves it."""
        return dict(self.page.evaluate("() => window.app.graph.serialize()"))

    def set_widget(self, kind: str, name: str, value: Any) -> None:
        """Set a widget of every node of a type."""
        self.page.evaluate(_SET, [kind, name, value])

    def run_command(self, name: str) -> None:
        """Run a command of the frontend, as its menu does."""
        self.page.evaluate("(name) => window.app.extensionManager.command.execute(name)", name)

    def reload(self) -> None:
        """Reload the page."""
        self.page.reload()
        self.page.wait_for_function(_READY, timeout=120_000)
        self.page.wait_for_timeout(1500)

    def inspect(self) -> dict[str, Any]:
        """The frontend's nodes, groups and links."""
        return dict(self.page.evaluate(_INSPECT))

    def prompt(self) -> dict[str, Any]:
        """The graph in API format, as the frontend would queue it."""
        output = self.page.evaluate("async () => (await window.app.graphToPrompt()).output")
        return {number: {key: node[key] for key in ("class_type", "inputs")} for number, node in output.items()}

    def dialogs(self) -> list[str]:
        """Texts of open dialogs, for example the one about missing nodes."""
        texts: list[str] = self.page.locator(".p-dialog:visible, [role=dialog]:visible").all_inner_texts()
        return [text for text in texts if text.strip()]

    def fit(self) -> None:
        """Zoom to the whole graph."""
        self.page.evaluate(_FIT, _MARGINS)
        self.page.wait_for_timeout(900)

    def screenshot(self, path: Path, quality: int | None = None, clip: FloatRect | None = None) -> None:
        """Save a screenshot of the page, or of a part: a JPEG of a quality, or a PNG with a palette, which is much smaller than without."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if quality is not None:
            self.page.screenshot(path=path, type="jpeg", quality=quality, clip=clip)
            return
        with Image.open(io.BytesIO(self.page.screenshot(clip=clip))) as taken:
            taken.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3).save(path, optimize=True)


@contextmanager
def opened(
    url: str, *, width: int = 1920, height: int = 1080, vue: bool = False, light: bool = False, locale: str = "en", scale: float = 1
) -> Iterator[Frontend]:
    """The frontend of the server at ``url`` in a fresh browser profile."""
    settings: dict[str, Any] = {
        "Comfy.TutorialCompleted": True,
        "Comfy.OnboardingCoachmarks.Seen": ["appMode", "firstRun"],
        "Comfy.InstalledVersion": "9.9.9",
        "Comfy.Release.Status": "skip",
        "Comfy.Workflow.ShowMissingModelsWarning": False,
        "Comfy.VueNodes.Enabled": vue,
        "Comfy.ColorPalette": "light" if light else "dark",
        "Comfy.Locale": locale,
        "Comfy.Graph.CanvasInfo": False,
        "Comfy.Minimap.Visible": False,
        "LiteGraph.Canvas.MinFontSizeForLOD": 0,
    }
    requests.post(f"{url}/api/settings", json=settings, timeout=30).raise_for_status()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=find_chromium(), args=_FLAGS)
        context = browser.new_context(viewport={"width": width, "height": height}, device_scale_factor=scale)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        frontend = Frontend(page, url)

        def on_console(message: ConsoleMessage) -> None:
            if message.type == "error":
                frontend.problems.append(f"{message.text} ({message.location.get('url', '')})")

        page.on("console", on_console)
        page.on("pageerror", lambda error: frontend.problems.append(f"uncaught: {error.message} at {error.stack}"))
        page.goto(url)
        page.wait_for_function(_READY, timeout=120_000)
        page.wait_for_timeout(1500)
        yield frontend
        browser.close()


@contextmanager
def in_new_tab(frontend: Frontend) -> Iterator[Frontend]:
    """The same frontend in a second tab of the same browser."""
    page = frontend.page.context.new_page()
    try:
        page.goto(frontend.url)
        page.wait_for_function(_READY, timeout=120_000)
        page.wait_for_timeout(1500)
        yield Frontend(page, frontend.url)
    finally:
        page.close()  # left open, it would stop the first tab from drawing in later tests
