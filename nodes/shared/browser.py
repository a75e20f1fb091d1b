"""Messages to the browser: text in a node, which LoRA a node used, and that the list of LoRAs changed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import comfy.model_management
from server import PromptServer

from ...trainer.core.work.progress import format_progress
from ...trainer.dataset.reading.surrogates import replace_surrogates

TEXT_INTERVAL = 0.5  # seconds between two lines of text in a node


def send(event: str, data: dict[str, Any], client: str | None = None) -> None:
    """Send ``data`` to the page of ``client``, or to every open page. Does nothing without a server."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_sync(event, data, client)


def show_text(node_id: str | None, text: str) -> None:
    """Show ``text`` in the node, on the page that queued it.

    ComfyUI's own progress text would add a widget to the node, which then grows into its neighbours.
    """
    if node_id is not None:
        send_to_queuer("animelora.text", {"node_id": node_id, "text": replace_surrogates(text)})  # file names may be invalid Unicode


def send_to_queuer(event: str, data: dict[str, Any]) -> None:
    """Send ``data`` to the page that queued the prompt; to none if another program did."""
    client = getattr(getattr(PromptServer, "instance", None), "client_id", None)
    if client is not None:
        send(event, data, client)


def show_progress(node_id: str | None) -> Callable[[str, int, int], None]:
    """A listener of ``trainer.core.work.progress`` that shows in the node what happens before the training process starts."""
    last = time.monotonic()

    def listener(what: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= TEXT_INTERVAL:
            last = time.monotonic()
            show_text(node_id, f"{what}: {format_progress(done, total)}")

    return listener


def show_used_lora(node_id: str | None, name: str) -> None:
    """Report which LoRA of the list the node has just used, so that its card shows that one."""
    if node_id is not None and name:
        send("animelora.lora", {"node_id": node_id, "name": name})


def report_new_lora() -> None:
    """Report that models/loras has a new file, so that menus reload. The end of a training does this on its own."""
    send("animelora.loras", {})


def is_interrupted() -> bool:
    """Whether the user pressed Cancel. Leaves ComfyUI's flag unchanged."""
    return bool(comfy.model_management.processing_interrupted())
