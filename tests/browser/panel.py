"""The training panel in the browser: a graph that trains, and what the panel shows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.browser.frontend import Frontend
from tests.server.comfy_server import Server, until
from tests.server.graphs import seed_of
from tests.tools.workflows.canvas import Canvas, Group
from tests.tools.workflows.parts import DEMO_BASE
from trainer.runs import events

PROMPTS = (
    "portrait, short blue hair, tan skin, plain yellow background, red hoodie, round green eyes, smile\n"
    "portrait, pink hair, twin tails, light skin, gradient blue background, white shirt, round blue eyes, smile"
)
PATIENCE = 240_000  # milliseconds; a training child takes 6 to 60 seconds to start, depending on the load
# The node with a title, also one in a subgraph.
TITLED = """(title) => {
  const find = (graph) => {
    for (const node of graph._nodes) {
      if (node.title === title) return node;
      const inner = node.subgraph && find(node.subgraph);
      if (inner) return inner;
    }
  };
  return find(window.app.rootGraph ?? window.app.graph);
}"""
_WRAP = f"""(title) => {{
  const node = ({TITLED})(title);
  const {{ node: around }} = window.app.graph.convertToSubgraph(new Set([node]));
  return [String(around.id), String(({TITLED})(title).id)];
}}"""
_PANEL = "window.app.graph._nodes.find((node) => node.animeloraPanel).animeloraPanel"


def training_graph(server: Server, **settings: Any) -> dict[str, Any]:
    """A graph that trains the demo base on drawn portraits."""
    canvas = Canvas("panel", server.get("/object_info"))
    drawn = canvas.node("AnimeLoRA_DemoPictures", count=4)
    prep = canvas.node("AnimeLoRA_DatasetPrep", images=drawn["images"], captions=drawn["captions"], resolution=128, tall=420)
    values: dict[str, Any] = {"rank": 4, "gradient_accumulation": 1, "precision": "fp32", "wide": 440, "validation_prompts": PROMPTS}
    values |= {"learning_rate": 2e-3, "validation_steps": 8, "validation_guidance": 3.0}
    values |= {"training_seed": seed_of(settings.get("name", ""))} | settings
    train = canvas.node("AnimeLoRA_TrainLora", dataset=prep["dataset"], checkpoint=DEMO_BASE, **values)
    canvas.row(Group("Training", [[drawn, prep], [train]]))
    return canvas.draw()


def status(frontend: Frontend) -> str:
    """The panel's first line."""
    return str(frontend.page.evaluate(f"() => {_PANEL}.status.textContent"))


def curve(frontend: Frontend) -> list[list[float]]:
    """The chart's steps, losses, smoothed losses and learning rates."""
    return list(frontend.page.evaluate(f"() => {_PANEL}.chart.data"))


def panel_value(frontend: Frontend, expression: str) -> Any:
    """The value of a JavaScript expression about ``panel``."""
    return frontend.page.evaluate(f"() => {{ const panel = {_PANEL}; return {expression}; }}")


def wait_for(frontend: Frontend, condition: str, panel: str = _PANEL) -> None:
    """Wait until a JavaScript expression about ``panel`` holds."""
    frontend.page.wait_for_function(f"() => {{ const panel = {panel}; return {condition}; }}", timeout=PATIENCE, polling=200)


def logged(server: Server, name: str) -> list[dict[str, Any]]:
    """The event log of the one run of a LoRA's name."""
    (log,) = (server.base / "output" / "animelora" / "runs").glob(f"{name}-*/events.jsonl")
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def count_events(server: Server, name: str, kind: str) -> int:
    """How many events of a kind the log of the run of a LoRA's name has. 0 before there is a log."""
    try:
        return sum(event["event"] == kind for event in logged(server, name))
    except ValueError:  # no log yet, or a line that is being written
        return 0


@contextmanager
def suspended(server: Server, name: str, at_least: int = 1, kind: str = "step") -> Iterator[None]:
    """Suspend the training processes of a server within the context, once the run of a LoRA's name has logged some events of a kind.

    The log on disk decides, not the page: a fast machine ends a short training before a slow page has drawn two steps.
    """
    until(lambda: count_events(server, name, kind) >= at_least, f"{kind} {at_least} never came")
    children = server.children()
    assert children, "nothing is being trained"
    for child in children:
        child.suspend()
    try:
        yield
    finally:
        for child in children:
            child.resume()


def copied(frontend: Frontend, button: str) -> str:
    """Click a button of the panel and return the clipboard."""
    frontend.page.locator(".animelora-panel button", has_text=button).dispatch_event("click")
    frontend.page.locator(".animelora-panel button", has_text="Copied").wait_for(state="attached")
    text = str(frontend.page.evaluate("() => navigator.clipboard.readText()"))
    frontend.page.locator(".animelora-panel button", has_text=button).wait_for(state="attached")
    return text


def chart_is_drawn(frontend: Frontend, panel: str = _PANEL) -> None:
    """Wait until the chart on the page has ink on it."""
    wait_for(
        frontend,
        """(() => { const chart = panel.plot.querySelector("canvas"); if (!chart?.width || !chart.checkVisibility()) return false;
        const pixels = chart.getContext("2d").getImageData(0, 0, chart.width, chart.height).data;
        return pixels.some((value, index) => index % 4 === 3 && value > 0); })()""",
        panel,
    )


def wrap(frontend: Frontend, title: str) -> tuple[str, str]:
    """Move a node into a subgraph; the ids of the subgraph node and of the node in it."""
    around, inside = frontend.page.evaluate(_WRAP, title)
    return str(around), str(inside)


def run_on_disk(server: Server, name: str, *, steps: int, kept: int = 0) -> Path:
    """A run folder as a killed child leaves it: the log ends after ``steps``, and there is a state of step ``kept``."""
    folder = server.base / "output" / "animelora" / "runs" / f"{name}-0123456789abcdef"
    folder.mkdir(parents=True)
    lines = [
        events.encode_event(
            events.Step(step, 9, 1, loss=0.5, loss_average=0.5, lr=1e-4, grad_norm=1.0, images_per_second=2.0, eta=3.0, memory_gb=1.0)
        )
        for step in range(1, steps + 1)
    ]
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if kept:
        state = folder / "checkpoints" / f"step-{kept:06d}"
        state.mkdir(parents=True)
        (state / "state.pt").touch()
    return folder


def opened(frontend: Frontend, server: Server, name: str) -> None:
    """Open a graph whose Train LoRA has ``name`` as its title and its LoRA's name."""
    frontend.load(training_graph(server, name=name, epochs=1), name)
    frontend.page.evaluate("""(title) => {
      window.app.graph._nodes.find((node) => node.type === "AnimeLoRA_TrainLora").title = title;
    }""", name)  # fmt: skip


def node_id(frontend: Frontend, title: str) -> str:
    """A node's id in its graph."""
    return str(frontend.page.evaluate(f"(title) => String(({TITLED})(title).id)", title))
