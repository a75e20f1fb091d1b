"""Starting a Triton kernel."""

from __future__ import annotations

from typing import Any

import torch


def start_kernel(kernel: Any, grid: tuple[int, ...], x: torch.Tensor, *arguments: Any, **constants: Any) -> None:
    """Start a forward kernel, whose first argument is ``x``. On the meta device, where memory is estimated, nothing is computed."""
    if not x.is_meta:
        kernel[grid](x, *arguments, **constants)
