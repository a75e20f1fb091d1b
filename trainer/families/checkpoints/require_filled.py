"""Check that a model got all of its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def require_filled(model: nn.Module) -> None:
    """Raise NotImplementedError, which ``layout_errors`` words, when weights of ``model`` were never loaded."""
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise NotImplementedError
