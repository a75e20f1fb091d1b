"""Dataset settings from a TOML file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ..errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MAX_BYTES = 1 << 20


def read_settings(path: Path) -> dict[str, Any]:
    """The table in a TOML file. Raises UserError."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(f"{path} is too large for a settings file.", kind="config")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"The settings {path} cannot be read: {error.strerror}.", "Check the name.", kind="config") from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise UserError(f"The settings {path} are not valid TOML: {error}", "Compare them with docs/datasets.md.", kind="config") from error
