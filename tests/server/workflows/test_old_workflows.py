"""The server accepts prompts that were saved with an earlier release."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.server.comfy_server import Server
from tests.server.templates import install_model_files
from tests.tools.workflows.record import OURS
from tests.tools.workflows.recorded import NAMES, RECORDED, prompt_beside


def test_recorded_release_has_every_node() -> None:
    assert RECORDED
    for folder in {path.parent for path in RECORDED}:
        prompt = prompt_beside(folder / "every_node.json")
        assert len([node for node in prompt.values() if node["class_type"].startswith(OURS)]) >= 12


@pytest.mark.parametrize("path", RECORDED, ids=NAMES)
def test_server_accepts_the_recorded_prompt(server: Server, shallow_checkpoint: Path, path: Path) -> None:
    install_model_files(server.base, shallow_checkpoint)
    server.queue(prompt_beside(path))  # raises with the server's reasons if a value or input is no longer allowed
    server.clear_queue()
