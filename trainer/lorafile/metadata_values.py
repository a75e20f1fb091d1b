"""Read values from a LoRA's metadata, which any program may have written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def text_value(metadata: Mapping[str, str], key: str) -> str:
    """The value of ``key``; empty when it is missing or stands for no value."""
    text = str(metadata.get(key, "")).strip()
    return "" if text in ("None", "null") else text


def json_object(text: str) -> dict[str, Any]:
    """The JSON object in ``text``; empty when it is invalid or not an object."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):  # ValueError: not JSON, or a number with thousands of digits
        return {}
    return data if isinstance(data, dict) else {}
