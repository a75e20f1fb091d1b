"""Load LoRAs with the code of a real ComfyUI, and the keys of its models."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.tools.comfyui import ComfyUI
from trainer.lorafile import FAMILY_LAYOUTS, diffusers_to_ldm
from trainer.lorafile.naming.anima_names import diffusers_to_anima

_PROGRAM = Path(__file__).parent / "programs" / "load_in_comfyui.py"
NARROW = 16  # the sizes of layers are divided by it where only numbers are compared: those of the real sizes take half a minute
_CLIP = {("sd1", "te1"): "clip_l", ("sdxl", "te1"): "clip_l", ("sdxl", "te2"): "clip_g"}


def comfy_key(family: str, component: str, name: str) -> str:
    """The layer's key in ComfyUI's models."""
    if family == "anima":
        return _anima_key(component, name)
    if family == "lumina2":
        return f"diffusion_model.{name}.weight" if component == "unet" else f"gemma2_2b.transformer.model.{name}.weight"
    if component == "unet":
        return f"diffusion_model.{diffusers_to_ldm(name, FAMILY_LAYOUTS[family].layout)}.weight"
    return f"{_CLIP[family, component]}.transformer.{name}.weight"


def _anima_key(component: str, name: str) -> str:
    if component == "te1":
        return f"qwen3_06b.transformer.model.{name}.weight"
    return f"diffusion_model.{diffusers_to_anima(name) if component == 'unet' else f'llm_adapter.{name}'}.weight"


def load_in_comfyui(comfyui: ComfyUI, folder: Path, family: str, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results of ``programs/load_in_comfyui.py`` for each of ``jobs``."""
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(comfyui.path), "PYTHONIOENCODING": "utf-8"}
    command = [str(comfyui.python), str(_PROGRAM), family, str(folder / "jobs.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=600, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results: list[dict[str, Any]] = json.loads(done.stdout.strip().splitlines()[-1])
    return results
