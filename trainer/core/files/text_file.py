"""Settings files as editors save them: UTF-8 with or without a byte order mark, and UTF-16 with one (Notepad, PowerShell)."""

from __future__ import annotations

import codecs
from pathlib import Path

from ..errors import UserError
from ..messages import File, Message
from .reading import read_regular

_MAX_BYTES = 1 << 20
_BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_SAVE_AS_UTF8 = 'Save it as UTF-8: in Notepad "Save as" with Encoding "UTF-8"; in PowerShell with "-Encoding utf8".'


def read_text(path: Path, what: str) -> str:
    """The text of the file at ``path``; ``what`` names it in errors, for example "configuration".

    The encoding is never guessed, because a path or trigger word read wrongly would train something else. Raises UserError for a file that
    cannot be read, is larger than 1 MiB or has another encoding.
    """
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise UserError(
                Message(File(str(path)), f" has {size:,} bytes; a {what} has at most {_MAX_BYTES:,}."), "Check the path.", kind="config"
            )
        data = read_regular(path, _MAX_BYTES)
    except OSError as error:
        raise UserError(
            Message(f"The {what} ", File(str(path)), f" cannot be read: {error.strerror}."), "Check the path.", kind="config"
        ) from error
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        cause = f"line {line} has the byte 0x{data[error.start]:02X}, which UTF-8 does not" if encoding == "utf-8" else str(error.reason)
        raise UserError(Message(f"The {what} ", File(str(path)), f" is not UTF-8 text: {cause}."), _SAVE_AS_UTF8, kind="config") from None
    if "\x00" in text:  # UTF-16 without a byte order mark, or no text at all
        raise UserError(
            Message(f"The {what} ", File(str(path)), " is not UTF-8 text: it has NUL characters."), _SAVE_AS_UTF8, kind="config"
        )
    return text
