"""Convert between ComfyUI's IMAGE tensors and Pillow images, and place images side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from ....trainer.core.files.image_file import load_image
from ....trainer.core.files.writing import atomic_path


def to_pil(image: torch.Tensor) -> Image.Image:
    """One image ``(H, W, 3 or 4)`` in 0..1 as RGB, with the bytes that ComfyUI's Save Image writes; alpha is composited on white."""
    array = (image.detach().cpu().float() * 255).clamp(0, 255).to(torch.uint8).numpy()
    if array.shape[-1] == 4:
        picture = Image.fromarray(array, "RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return Image.fromarray(array[..., :3], "RGB")


def from_pil(picture: Image.Image) -> torch.Tensor:
    """One image as float32 ``(1, H, W, 3)`` in 0..1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255.0).unsqueeze(0)


def batch(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """Images as one IMAGE ``(B, H, W, 3)``; those of another size are fitted into the first one's size with a white border."""
    size = pictures[0].size
    same = [p if p.size == size else ImageOps.pad(p.convert("RGB"), size, Image.Resampling.LANCZOS, color="white") for p in pictures]
    return torch.cat([from_pil(picture) for picture in same])


def load_rgb(path: Path) -> Image.Image:
    """An image that the pack wrote, fully read and closed."""
    return load_image(path)


def keep_graph(path: Path, graph: Mapping[str, Any]) -> None:
    """Write ``graph`` (``prompt``, ``workflow``) to a PNG like ComfyUI's Save Image, which the canvas can restore the workflow from."""
    chunks = PngInfo()
    for name, value in graph.items():
        chunks.add_text(name, json.dumps(value))
    picture = load_image(path, None)
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=chunks)


def side_by_side(before: torch.Tensor, after: torch.Tensor, gap: int = 8) -> torch.Tensor:
    """``before`` and ``after`` next to each other with a white gap: ``(B, H, W + gap + W, 3)``.

    ``before`` is resized to ``after``'s size where they differ, and repeated when it has fewer images.
    """
    height, width = after.shape[1:3]
    left = before[..., :3].to(after.device, after.dtype)
    if left.shape[1:3] != (height, width):
        moved = torch.nn.functional.interpolate(left.movedim(-1, 1), size=(height, width), mode="bilinear", antialias=True)
        left = moved.movedim(1, -1).clamp(0, 1)
    indices = [i % left.shape[0] for i in range(after.shape[0])]
    white = torch.ones(after.shape[0], height, gap, 3, dtype=after.dtype, device=after.device)
    return torch.cat([left[indices], white, after[..., :3]], dim=2)
