"""Dataset settings from a TOML file and from ``key=value`` on a command line."""

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


def apply_override(data: dict[str, Any], override: str) -> None:
    """Put ``section.key=value`` into ``data``; the value is TOML, or a bare word."""
    key, separator, value = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise UserError(f"--set {override!r} is not of the form key=value.", "For example: --set clean.min_side=256", kind="config")
    place = data
    for part in parts[:-1]:
        if place.get(part) is None:
            place[part] = {}
        place = place[part]
        if not isinstance(place, dict):
            raise UserError(f"--set {override!r}: {part} is a value, not a section.", kind="config")
    try:
        place[parts[-1]] = tomllib.loads(f"v = {value}")["v"]
    except ValueError:
        place[parts[-1]] = value
