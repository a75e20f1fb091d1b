"""How the command line was started, for what it tells users to type."""

from __future__ import annotations

import subprocess  # nosec B404: for its quoting, nothing is started here
import sys
from pathlib import Path

MODULE = "python -m trainer"


def as_typed() -> str:
    """``python -m trainer``; by its path where Python does not look into the current folder, as that of Windows portable.

    Such a Python would answer ``No module named trainer``.
    """
    if not sys.flags.isolated and not getattr(sys.flags, "safe_path", False):
        return MODULE
    trainer = Path(__file__).resolve().parents[1]
    return subprocess.list2cmdline([sys.executable or "python", *(["-s"] if sys.flags.no_user_site else []), str(trainer)])


def typed(text: str) -> str:
    """``text`` with commands as they have to be typed here."""
    return text.replace(MODULE, as_typed())
