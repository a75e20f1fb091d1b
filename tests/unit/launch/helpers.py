"""Helpers for tests of launching and publishing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trainer.core.files.writing import PARTIAL
from trainer.launch.launcher import OnEvent
from trainer.runs import events
from trainer.runs.run_folder import RunFolder


def half_files(folder: Path) -> list[Path]:
    """Files that an interrupted write left."""
    return list(folder.rglob(f"{PARTIAL}*"))


def when(is_time: Callable[[events.Event], bool], act: Callable[[], None]) -> OnEvent:
    """Call ``act`` at the first event for which ``is_time`` is true."""
    done: list[events.Event] = []

    def on_event(event: events.Event) -> None:
        if not done and is_time(event):
            done.append(event)
            act()

    return on_event


def finished(root: Path, identity: str, content: bytes) -> RunFolder:
    """A finished run with a LoRA of these bytes."""
    run = RunFolder(root / f"style-{identity}", "style")
    run.path.mkdir(parents=True)
    run.lora.write_bytes(content)
    run.write_result(steps=1, loss=0.5, seconds=1.0)
    return run
