"""Rotary position embeddings over three axes (Su et al. 2021): the place in the caption, and row and column in the image.

A token of a caption has its place and row and column 0; a token of the image has the length of the caption, its row and its column. Imports
torch: import this module late.
"""

from __future__ import annotations

import torch

_BASE = 10_000.0
_AXES = 3


def caption_positions(batch: int, length: int, device: torch.device) -> torch.Tensor:
    """(batch, length, 3)."""
    places = torch.arange(length, device=device).expand(batch, length)
    return torch.stack([places, torch.zeros_like(places), torch.zeros_like(places)], dim=-1)


def image_positions(lengths: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """(batch, rows x columns, 3) of images whose captions have these ``lengths`` (batch,)."""
    grid = (len(lengths), rows, columns)
    along = [torch.arange(size, device=lengths.device) for size in (rows, columns)]
    axes = (lengths.view(-1, 1, 1).expand(grid), along[0].view(1, -1, 1).expand(grid), along[1].view(1, 1, -1).expand(grid))
    return torch.stack(axes, dim=-1).flatten(1, 2)


def rotations(positions: torch.Tensor, head: int) -> torch.Tensor:
    """Cosines and sines (batch, length, 1, head / 2, 2), in fp32, by which pairs of numbers of a head are rotated at ``positions`` (batch,
    length, 3). Each axis has a third of the pairs."""
    width = head // _AXES
    # in fp64 as in the original: in fp32, angles of hundreds would be rounded to 1e-5
    precise = torch.float32 if positions.device.type == "mps" else torch.float64
    rates = _BASE ** (-torch.arange(0, width, 2, dtype=precise, device=positions.device) / width)
    angles = (positions.to(precise)[..., None] * rates).flatten(-2)
    return torch.stack([angles.cos(), angles.sin()], dim=-1).float().unsqueeze(2)


def rotate(heads: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """``heads`` (batch, length, heads, head) with each pair of neighbours rotated, in the dtype of ``heads``."""
    even, odd = heads.float().unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = rotation.unbind(-1)
    return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1).flatten(-2).to(heads.dtype)
