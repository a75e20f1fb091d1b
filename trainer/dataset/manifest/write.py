"""Writing the manifest of a prepared dataset."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...core.files.writing import atomic_path, write_atomic
from ..layout import HEADER, ROWS, SCHEMA, SCHEMA_VERSION
from .items import Row


def write_manifest(folder: Path, header: dict[str, Any], rows: Sequence[Row]) -> None:
    """Write rows and header. The header comes last and has the hash of the rows, so that an incomplete pair is detected."""
    digest = hashlib.sha256()
    with atomic_path(folder / ROWS) as temporary, temporary.open("wb") as file:
        for row in rows:
            line = json.dumps(row.to_json(), ensure_ascii=False).encode("utf-8") + b"\n"
            digest.update(line)
            file.write(line)
    full = {"schema": SCHEMA, "version": SCHEMA_VERSION, **header, "count": len(rows), "rows_sha256": digest.hexdigest()}
    write_atomic(folder / HEADER, json.dumps(full, indent=1, ensure_ascii=False) + "\n")
