"""JSON records with a checksum of their values, so that no record with a flipped bit is used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .reading import read_regular
from .writing import write_atomic

_CHECKSUM = "checksum"
_MAX_BYTES = 1 << 20


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Write ``values`` (JSON data) to ``path`` with their SHA-256."""
    write_atomic(path, json.dumps({**values, _CHECKSUM: _digest(values)}, indent=1))


def read_sealed(path: Path, *, without: Collection[str] = ()) -> dict[str, Any]:
    """The values of the record at ``path`` after verifying their checksum.

    ``without``: the keys of records that older versions wrote without a checksum; a record with exactly these is returned unverified.
    Raises OSError or ValueError with the reason.
    """
    text = read_regular(path, _MAX_BYTES).decode("utf-8")
    try:
        values = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    if without and values.keys() == set(without):
        return values
    if values.pop(_CHECKSUM, None) != _digest(values):
        raise ValueError("it does not match its checksum")
    return values


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
