"""Workflows and prompts that were recorded with each release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.tools.workflows.record import FOLDER

RECORDED = sorted(path for path in FOLDER.glob("*/*.json") if not path.name.endswith(".api.json"))
NAMES = [f"{path.parent.name} {path.stem}" for path in RECORDED]


def prompt_beside(path: Path) -> dict[str, Any]:
    """The prompt that was recorded with a workflow."""
    loaded: dict[str, Any] = json.loads(path.with_suffix(".api.json").read_text(encoding="utf-8"))
    return loaded
