"""Dataset settings from a TOML file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.files.text_file import read_text
from ..core.messages import Action, Message

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_settings(path: Path) -> dict[str, Any]:
    """The table in a TOML file. Raises UserError."""
    try:
        data: dict[str, Any] = tomllib.loads(read_text(path, "settings file"))
        return data
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError
        raise UserError(
            f"The settings {path} are not valid TOML: {error}",
            Message("Every setting is described in ", Action.READ_ABOUT_DATASET_SETTINGS, "."),
            kind="config",
        ) from error
