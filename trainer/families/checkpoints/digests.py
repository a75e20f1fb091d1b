"""SHA-256 digests of large files, cached for as long as a file is unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...core.files.reading import file_stamp, sha256_file
from ...core.files.sealed_json import read_sealed, write_sealed
from ...core.files.writing import remove_abandoned

_RECORD = "checkpoint-hashes.json"


def cached_digest(path: Path, cache_dir: Path | None, full: bool) -> str:
    """SHA-256 of the file ``path``, from ``cache_dir`` while its size, times and inode are unchanged; ``full`` always reads the file."""
    if cache_dir is None:
        return sha256_file(path)
    known, key = _known(cache_dir), _key(path)
    if not full and isinstance(known.get(key), str):
        return str(known[key])
    digest = sha256_file(path)
    remove_abandoned(cache_dir)
    write_sealed(cache_dir / _RECORD, {k: v for k, v in known.items() if not k.startswith(f"{path}|")} | {key: digest})
    return digest


def has_digest(path: Path, cache_dir: Path) -> bool:
    """Whether ``cached_digest`` returns without reading the file."""
    return isinstance(_known(cache_dir).get(_key(path)), str)


def _known(cache_dir: Path) -> dict[str, Any]:
    """The cached digests; empty where there are none, or where they are damaged or of an earlier version."""
    try:
        return read_sealed(cache_dir / _RECORD)
    except (OSError, ValueError):
        return {}


def _key(path: Path) -> str:
    return f"{path}|{file_stamp(path)}"
