"""The example workflows that the pack ships, and the files that they name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from random_checkpoints.anima import DENOISER, make_anima
from tests.server.comfy_server import ROOT
from tests.server.files import link, portrait
from tests.tools.workflows.parts import CHECKPOINT, CONTROLNET, LORA_FILE


def install_model_files(base: Path, checkpoint: Path) -> None:
    """Install files with the names in the graphs; at most their headers are read."""
    for folder, name in (("checkpoints", CHECKPOINT), ("controlnet", CONTROLNET), ("loras", LORA_FILE)):
        place = base / "models" / folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            link(checkpoint, place)
    if not (base / "models" / DENOISER).exists():
        make_anima(base / "models", "tiny")
    portrait(96, 3).save(base / "input" / "example.png")


def shipped_workflow(name: str) -> dict[str, Any]:
    """An example workflow of the pack."""
    loaded: dict[str, Any] = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    return loaded
