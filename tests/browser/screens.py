"""Reading from the canvas, and sending events to it."""

from __future__ import annotations

from typing import Any

from tests.browser.frontend import Frontend
from tests.server.comfy_server import ROOT
from tests.tools.workflows.api import NOTES

SCREENSHOTS = ROOT / "docs" / "images"


def pack_errors(messages: list[str]) -> list[str]:
    """Console errors that the pack may have caused: those that name it, and uncaught exceptions."""
    return [text for text in messages if "animelora" in text.lower() or text.startswith("uncaught")]


def widget_values(graph: dict[str, Any]) -> dict[int, list[Any]]:
    """Widget values by node id."""
    return {node["id"]: list(node.get("widgets_values") or []) for node in graph["nodes"] if node["type"] not in NOTES}


def send_event(frontend: Frontend, event: str, /, **detail: Any) -> None:
    """Dispatch an event as the frontend does when the server sends it."""
    frontend.page.evaluate("([event, detail]) => window.app.api.dispatchEvent(new CustomEvent(event, {detail}))", [event, detail])
