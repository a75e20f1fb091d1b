"""The files beside a LoRA: a preview image, and notes by A1111 (``name.json``) and Civitai helpers (``name.civitai.info``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ...core.files.image_file import PREVIEW_FORMATS, load_image
from ...core.files.reading import read_regular
from ..metadata_values import json_object

_PREVIEWS = tuple(f"{middle}{ending}" for middle in (".preview", "") for ending in (".png", ".jpg", ".jpeg", ".webp"))
_NOTES = (".json", ".civitai.info")
_MOST_NOTES = 1 << 20  # bytes
_MOST_PREVIEW = 64 << 20  # bytes
_MOST_PIXELS = 64_000_000


@dataclass(frozen=True)
class Notes:
    """What users noted about a LoRA; empty without notes. ``base`` is the kind of model in their words."""

    trigger_words: tuple[str, ...] = ()
    base: str = ""
    title: str = ""
    description: str = ""
    strength: float | None = None


def companions(path: Path) -> list[Path]:
    """The existing files beside the LoRA at ``path`` that describe it: images first, in order of preference."""
    stem = str(path.with_suffix(""))
    return [found for ending in (*_PREVIEWS, *_NOTES) if (found := Path(stem + ending)).is_file()]


def preview(path: Path) -> Image.Image | None:
    """The image beside the LoRA at ``path``; None without a readable image of reasonable size."""
    for found in companions(path):
        if found.name.endswith(_NOTES):
            continue
        try:
            return load_image(found, max_bytes=_MOST_PREVIEW, max_pixels=_MOST_PIXELS, draft=(512, 512), formats=PREVIEW_FORMATS)
        except OSError:
            continue
    return None


def notes(path: Path) -> Notes:
    """The notes of A1111 and Civitai helpers about the LoRA at ``path``. Files that are not JSON objects count as absent."""
    stem = str(path.with_suffix(""))
    webui, civitai = (_read(Path(stem + ending)) for ending in _NOTES)
    trained = civitai.get("trainedWords")
    words = [str(word) for word in trained if isinstance(word, str)] if isinstance(trained, list) else []
    model = civitai.get("model")
    strength = webui.get("preferred weight")
    return Notes(
        trigger_words=split_words(_text(webui, "activation text")) or split_words(", ".join(words)),
        base=_text(webui, "sd version") or _text(civitai, "baseModel"),
        title=_text(model, "name") if isinstance(model, dict) else "",
        description=_text(webui, "description") or _text(webui, "notes"),
        strength=float(strength) if isinstance(strength, (int, float)) and 0 < strength <= 10 else None,
    )


def split_words(text: str) -> tuple[str, ...]:
    """The words between commas, without empty ones and repetitions."""
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return json_object(read_regular(path, _MOST_NOTES).decode("utf-8-sig"))
    except (OSError, ValueError):
        return {}


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    return value.strip() if isinstance(value, str) else ""
