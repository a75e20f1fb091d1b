"""How the command line was started, for messages that show commands."""

from __future__ import annotations

import subprocess  # nosec B404: only for its quoting
import sys
from pathlib import Path

MODULE = "python -m trainer"


def as_typed() -> str:
    """``python -m trainer``, or the trainer's path if Python does not look for modules in the current folder.

    Such a Python, for example that of ComfyUI's Windows portable, answers ``No module named trainer``.
    """
    if not sys.flags.isolated and not getattr(sys.flags, "safe_path", False):
        return MODULE
    trainer = Path(__file__).resolve().parents[1]
    return subprocess.list2cmdline([sys.executable or "python", *(["-s"] if sys.flags.no_user_site else []), str(trainer)])


def typed(text: str) -> str:
    """``text`` with commands as they must be typed here."""
    return text.replace(MODULE, as_typed())
