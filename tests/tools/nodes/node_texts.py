"""The node texts and help pages of each language."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
LANGUAGES = ("en", "vi", "ja", "zh")


def node_texts(language: str) -> dict[str, Any]:
    """Node texts of a language by node id."""
    loaded: dict[str, Any] = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    return loaded


def help_page(node: str, language: str) -> str:
    """The help page that the frontend asks for."""
    name = f"{node}.md" if language == "en" else f"{node}/{language}.md"
    return (ROOT / "web" / "docs" / name).read_text(encoding="utf-8")
