"""SHA-256 digests of large files, cached for as long as a file is unchanged."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from ...core.files.reading import file_stamp, sha256_file
from ...core.files.sealed_json import read_sealed, write_sealed
from ...core.files.writing import remove_abandoned


def cached_digest(path: Path, cache_dir: Path | None, full: bool) -> str:
    """SHA-256 of the file ``path``, from ``cache_dir`` while its size, times and inode are unchanged; ``full`` always reads the file."""
    if cache_dir is None:
        return sha256_file(path)
    stamp = file_stamp(path)
    record = cache_dir / "checkpoint-hashes.json"
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError):  # there is none, it is damaged, or it is of an earlier version
        known = read_sealed(record)
    key = f"{path}|{stamp}"
    if not full and isinstance(known.get(key), str):
        return str(known[key])
    digest = sha256_file(path)
    remove_abandoned(cache_dir)
    write_sealed(record, {k: v for k, v in known.items() if not k.startswith(f"{path}|")} | {key: digest})
    return digest
