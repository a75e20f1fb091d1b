"""Load Gemma 2 from a single file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..checkpoints.base_checkpoint import layout_errors
from ..checkpoints.require_filled import require_filled
from ..checkpoints.weights_file import WeightsFile
from . import tensor_layout

if TYPE_CHECKING:
    import torch


def load_gemma(file: WeightsFile, dtype: torch.dtype, title: str) -> Any:
    """``transformers.Gemma2Model`` without its last layer and final norm, frozen, on the CPU: its output is the input of that layer.
    ``title`` is the family's."""
    import torch

    prefix = tensor_layout.text_prefix(file.shapes) or ""
    gemma = empty_gemma(file, title)
    names = set(gemma.state_dict())
    with layout_errors(file.path.name, "text encoder", title):
        tensors = file.tensors(lambda key: key.startswith(prefix) and key[len(prefix) :] in names, dtype)
        gemma.load_state_dict({key[len(prefix) :]: value for key, value in tensors.items()}, assign=True)
        require_filled(gemma)
        gemma.rotary_emb = type(gemma.rotary_emb)(config=gemma.config)  # its frequencies are not in the file
        if hasattr(gemma.embed_tokens, "embed_scale"):  # neither is the scale, a buffer in transformers 5
            gemma.embed_tokens.embed_scale = torch.tensor(gemma.config.hidden_size**0.5)
    return gemma.requires_grad_(False)


def empty_gemma(file: WeightsFile, title: str) -> Any:
    """``load_gemma`` without weights, on the ``meta`` device."""
    import torch
    from torch import nn
    from transformers import Gemma2Config, Gemma2Model

    with torch.device("meta"), layout_errors(file.path.name, "text encoder", title):
        config = Gemma2Config(**tensor_layout.text_config(file.shapes, tensor_layout.text_prefix(file.shapes) or ""))
        gemma = Gemma2Model(config)
    gemma.norm = nn.Identity()
    return gemma.eval().requires_grad_(False)
