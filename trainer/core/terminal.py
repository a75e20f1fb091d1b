"""Standard output that accepts any text."""

from __future__ import annotations

import sys


def escape_unprintable(*, encoding: str | None = None) -> None:
    r"""Make standard output and error write characters that their encoding lacks as ``\u4e2d`` instead of raising.

    On Windows, redirected output has the system's code page (cp1252, cp932), and on any system a file name may be invalid Unicode.
    ``encoding`` also changes the encoding; None keeps it.
    """
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(
            stream, "reconfigure", None
        )  # without a console (pythonw) a stream is None, and some programs replace it with other objects
        if reconfigure is not None:
            reconfigure(encoding=encoding, errors="backslashreplace")
