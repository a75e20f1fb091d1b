"""Writes a random Stable Diffusion checkpoint (1.x, 2.x, SDXL) in the original single-file layout, full size or tiny.

    python -m random_checkpoints.make_checkpoint random-sd15.safetensors --size full

Tensors are filled in fp16 one after the other and streamed to the file, so that memory stays small. The same seed gives the same bytes.
The scales keep activations near unit size: a sampled image is noise, but finite noise.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from random_checkpoints.layout import SIZES, TOKENS, Tensor, tensors
from random_checkpoints.random_values import uniform
from trainer.core.files.writing import atomic_path

VERSION = 1  # increase it when the bytes change, so that cached files are written again
_RESIDUAL_GAIN = 0.5  # for branches that are added to their input; without it, activations grow with depth


def make_checkpoint(path: Path, size: str = "tiny", seed: int = 0) -> Path:
    """Write the checkpoint atomically and return its path. ``size`` is a key of ``SIZES``: ``"tiny"`` is 14 MB, ``"full"`` 2.13 GB."""
    layout = tensors(SIZES[size])
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(_header(layout))
        for tensor in layout:
            for part in _values(tensor, seed):
                part.tofile(file)
    return path


def make_empty_checkpoint(path: Path, size: str) -> Path:
    """Write a sparse file with the header of a whole checkpoint and zeros for its tensors, and return its path."""
    layout = tensors(SIZES[size])
    with path.open("wb") as file:
        file.write(_header(layout))
        file.truncate(file.tell() + sum(math.prod(t.shape) * (8 if t.kind == "position_ids" else 2) for t in layout))
    return path


def _header(layout: list[Tensor]) -> bytes:
    table: dict[str, Any] = {"__metadata__": {"modelspec.title": "random weights for tests"}}
    offset = 0
    for tensor in layout:
        wide = tensor.kind == "position_ids"
        end = offset + math.prod(tensor.shape) * (8 if wide else 2)
        table[tensor.name] = {"dtype": "I64" if wide else "F16", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _values(tensor: Tensor, seed: int) -> list[npt.NDArray[Any]]:
    count = math.prod(tensor.shape)
    if tensor.kind == "position_ids":
        return [np.arange(TOKENS, dtype="<i8")]
    if tensor.kind in ("norm", "bias"):
        return [np.full(count, 1.0 if tensor.kind == "norm" else 0.0, dtype="<f2")]
    return [values.astype("<f2") for values in uniform(tensor.name, seed, count, _deviation(tensor))]


def _deviation(tensor: Tensor) -> float:
    if tensor.kind in ("embedding", "position"):
        return 0.02 if tensor.kind == "embedding" else 0.01  # CLIP's own initialisation
    return (_RESIDUAL_GAIN if tensor.kind == "residual" else 1.0) / math.sqrt(tensor.fan_in)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write a random Stable Diffusion checkpoint in the original layout.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    path = make_checkpoint(args.out, args.size, args.seed)
    print(f"{path}: {path.stat().st_size / 1e9:.2f} GB, {len(tensors(SIZES[args.size]))} tensors")


if __name__ == "__main__":
    main()
