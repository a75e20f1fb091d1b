"""Text from file names and metadata as everything else can write it."""

from __future__ import annotations


def replace_surrogates(text: str) -> str:
    """``text`` as it is, unless UTF-8 cannot hold it: a name of another encoding gets � for what cannot be read.

    Python gives bytes of a file name that are not UTF-8 as lone surrogates, and JSON may hold such, too.
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
