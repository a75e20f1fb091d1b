"""SHA-256 digests of large files, cached for as long as a file is unchanged."""

from __future__ import annotations

import json
from pathlib import Path

from ...core.files.reading import file_stamp, read_regular, sha256_file
from ...core.files.writing import remove_abandoned, write_atomic

_LARGEST = 16 << 20  # bytes of the record


def cached_digest(path: Path, cache_dir: Path | None, full: bool) -> str:
    """SHA-256 of the file ``path``, from ``cache_dir`` while its size, times and inode are unchanged; ``full`` always reads the file."""
    if cache_dir is None:
        return sha256_file(path)
    stamp = file_stamp(path)
    record = cache_dir / "checkpoint-hashes.json"
    try:
        known = json.loads(read_regular(record, _LARGEST))
        if not isinstance(known, dict):
            known = {}
    except (OSError, ValueError, RecursionError):
        known = {}
    key = f"{path}|{stamp}"
    if not full and isinstance(known.get(key), str):
        return str(known[key])
    digest = sha256_file(path)
    fresh = {k: v for k, v in known.items() if not k.startswith(f"{path}|")} | {key: digest}
    remove_abandoned(cache_dir)
    write_atomic(record, json.dumps(fresh, indent=1))
    return digest
