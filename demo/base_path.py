"""Where the embedded base model is."""

from __future__ import annotations

from pathlib import Path

BASE_FILE = Path(__file__).resolve().parent / "base" / "animelora-base.safetensors"
