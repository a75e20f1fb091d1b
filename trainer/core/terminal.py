"""Standard output that any text can be written to."""

from __future__ import annotations

import sys


def escape_unprintable(*, encoding: str | None = None) -> None:
    r"""Let standard output and error write what their encoding lacks as ``\u4e2d`` instead of failing.

    On Windows redirected output has the code page of the system (cp1252, cp932), and a file name need not be text anywhere. ``encoding``
    changes the encoding, too; None keeps it.
    """
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # None without a console (pythonw), and some programs put other objects there
        if reconfigure is not None:
            reconfigure(encoding=encoding, errors="backslashreplace")
