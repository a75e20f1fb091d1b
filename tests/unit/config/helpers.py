"""The smallest configuration."""

from __future__ import annotations

from typing import Any

MINIMAL: dict[str, Any] = {"base": {"checkpoint": "base.safetensors"}, "dataset": {"path": "data"}}
