"""The safetensors container: read and validate its header, and replace its metadata without touching the tensors.

Format: the header's length in 8 bytes, little-endian; a JSON object of tensors ({dtype, shape, data_offsets}) and ``__metadata__``; data.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.files.writing import atomic_path
from ..core.messages import File, Message

MAX_HEADER = 100_000_000  # safetensors' own limit

DTYPE_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True)
class SafetensorsHeader:
    """A valid header. ``tensors`` maps keys to (dtype, shape, (start, end)) with offsets from ``data_start``."""

    tensors: dict[str, tuple[str, tuple[int, ...], tuple[int, int]]]
    metadata: dict[str, str]
    data_start: int


def read_safetensors_header(path: Path) -> SafetensorsHeader:
    """Read a safetensors header and check sizes, types, and that offsets have no gap or overlap. Raises UserError for any fault."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 10 or length < 2:
                raise _bad(path, "it is too short to be one")
            if length > min(MAX_HEADER, size - 8):
                raise _bad(path, f"its header claims {length} bytes in a file of {size}")
            raw = file.read(length)
    except OSError as error:
        raise UserError(
            Message(File(str(path)), f" cannot be read: {error.strerror or error}."), "Check the path and its permissions.", kind="lora"
        ) from error
    try:
        data = json.loads(raw.decode("utf-8"), object_pairs_hook=lambda pairs: _unique(path, pairs))
        if b"\\ud" in raw or b"\\uD" in raw:
            json.dumps(data, ensure_ascii=False).encode("utf-8")  # refuses lone surrogates, which other readers refuse too
    except (UnicodeError, json.JSONDecodeError, RecursionError, ValueError) as error:
        raise _bad(path, "its header is not JSON") from error
    if not isinstance(data, dict):
        raise _bad(path, "its header is not a JSON object")
    metadata = data.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _bad(path, "its metadata is not text")
    tensors = {key: _entry(path, key, entry) for key, entry in data.items()}
    end = 0
    for key, (_, _, (start, stop)) in sorted(tensors.items(), key=lambda item: item[1][2]):
        if start != end:
            raise _bad(path, f"the data of {key!r} {'overlaps another tensor' if start < end else 'leaves a hole in the file'}")
        end = stop
    if end != size - 8 - length:
        raise _bad(path, f"its tensors take {end} bytes and the file has {size - 8 - length}; the download may be incomplete")
    return SafetensorsHeader(tensors, metadata, 8 + length)


def rewrite_metadata(source: Path, target: Path, metadata: Mapping[str, str]) -> None:
    """Write ``source`` to ``target`` (may be the same path) with other metadata, atomically; see ``copy_with_metadata``."""
    with atomic_path(target) as temporary:
        copy_with_metadata(source, temporary, metadata)


def copy_with_metadata(source: Path, target: Path, metadata: Mapping[str, str]) -> None:
    """Write ``source`` to ``target`` with other metadata, not atomically. Tensor bytes and their order stay the same.

    Metadata is sorted, so that equal content gives equal files.
    """
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"metadata must be text: {key!r}: {value!r}")
    header = read_safetensors_header(source)
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    for key, (dtype, shape, offsets) in sorted(header.tensors.items(), key=lambda item: (item[1][2], item[0])):
        entries[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise UserError("The metadata exceeds the maximum size of a safetensors header (100 MB).", "Use a smaller thumbnail.", kind="lora")
    _copy_data(source, header.data_start, target, len(text).to_bytes(8, "little") + text)


def _copy_data(source: Path, start: int, target: Path, header: bytes) -> None:
    # both files must be closed before the caller renames one: Windows cannot replace an open file
    with source.open("rb") as read, target.open("wb") as write:
        read.seek(start)
        write.write(header)
        shutil.copyfileobj(read, write, 1 << 20)


def _entry(path: Path, key: str, entry: Any) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    if not isinstance(entry, dict):
        raise _bad(path, f"the entry of {key!r} is not an object")
    dtype = entry.get("dtype")
    shape, offsets = _whole_numbers(entry.get("shape")), _whole_numbers(entry.get("data_offsets"))
    if dtype not in DTYPE_BYTES:
        raise _bad(path, f"{key!r} has the unknown number type {dtype!r}")
    if shape is None or offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _bad(path, f"the shape or the offsets of {key!r} are invalid")
    if math.prod(shape) * DTYPE_BYTES[dtype] != offsets[1] - offsets[0]:
        raise _bad(path, f"{key!r} has shape {shape} of {dtype}, which does not match its {offsets[1] - offsets[0]} bytes")
    return dtype, tuple(shape), (offsets[0], offsets[1])


def _whole_numbers(value: Any) -> list[int] | None:
    fine = isinstance(value, list) and len(value) <= 16 and all(type(item) is int and 0 <= item < 1 << 62 for item in value)
    return value if fine else None


def _unique(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _bad(path, "its header names a tensor twice")
    return result


def _bad(path: Path, why: str) -> UserError:
    return UserError(f"{path.name} is not a valid safetensors file: {why}.", "Download or export it again.", kind="lora")
