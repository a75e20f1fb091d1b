"""``--set key=value``: set one value in plain nested data before it is validated."""

from __future__ import annotations

import sys
from typing import Any

from ..core.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def apply_override(data: dict[str, Any], override: str, *, example: str) -> None:
    """Set ``section.key=value`` in ``data``, adding missing sections; the value is TOML, or a bare word.

    Raises UserError, with ``example`` in its hint, for any other form.
    """
    key, separator, value = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise UserError(f"--set {override!r} is not of the form key=value.", f"For example: --set {example}", kind="config")
    place = data
    for part in parts[:-1]:
        if place.get(part) is None:
            place[part] = {}
        place = place[part]
        if not isinstance(place, dict):
            raise UserError(f"--set {override!r}: {part} is a value, not a section.", kind="config")
    try:
        place[parts[-1]] = tomllib.loads(f"v = {value}")["v"]
    except RecursionError as error:
        raise UserError(f"The value of --set {key.strip()} is nested too deeply.", kind="config") from error
    except ValueError:  # includes TOMLDecodeError
        place[parts[-1]] = value  # bare words need no quotes on a command line
