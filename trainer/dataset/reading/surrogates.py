"""Text that UTF-8 cannot encode, from file names and metadata."""

from __future__ import annotations


def replace_surrogates(text: str) -> str:
    """``text`` with � in place of lone surrogates, which UTF-8 cannot encode.

    In Python, bytes of a file name that are not UTF-8 become lone surrogates; JSON may contain them, too.
    """
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        pass
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:  # other surrogates: from JSON, or from Windows
        return text.encode("utf-8", "replace").decode("utf-8")
