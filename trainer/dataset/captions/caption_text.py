"""Read caption files, those beside source images and those of a prepared dataset."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ...core.counting import plural
from ...core.files.reading import open_regular
from .encodings import decode_text

MAX_CAPTION_BYTES = 1 << 20
_UNUSUAL = re.compile(rb"[^\x09\x0a\x0d\x20-\x7e]")


def read_caption_text(path: str | Path) -> tuple[str, str]:
    """(text with tidied lines, the encoding if it was guessed, else "").

    Raises OSError for a file that cannot be read, is not a regular file or is longer than ``MAX_CAPTION_BYTES``.
    """
    handle = open_regular(path)  # system calls instead of file objects, which take longer for 100,000 files
    try:
        size = os.fstat(handle).st_size
        if size > MAX_CAPTION_BYTES:
            raise OSError(errno.EFBIG, f"the file is {size >> 20} MB long, more than {MAX_CAPTION_BYTES >> 20}")
        data = os.read(handle, MAX_CAPTION_BYTES)
    finally:
        os.close(handle)
    if _UNUSUAL.search(data) is None:
        return tidy_lines(data.decode("ascii")), ""
    text, guessed = decode_text(data)
    return tidy_lines(text), guessed


def tidy_lines(text: str) -> str:
    """``text`` without empty lines and repeated spaces, and without spaces and commas at the ends of lines."""
    lines = (" ".join(line.replace("\x00", "").split()).strip(" ,") for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def one_line(text: str) -> str:
    """``text`` on one line: tidied lines joined with commas, since files with one tag per line are common."""
    return tidy_lines(text).replace("\n", ", ")


def encoding_warning(encoding: str, names: Sequence[str]) -> str:
    """A warning about caption files that are not UTF-8. ``names``: all of them."""
    verb = "is not UTF-8 and was" if len(names) == 1 else "are not UTF-8 and were"
    return f"{plural(len(names), 'caption file')} {verb} read as {encoding}, for example {names[0]}. Check the captions."
