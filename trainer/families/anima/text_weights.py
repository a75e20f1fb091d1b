"""Load Qwen3 and Anima's text adapter from single files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..checkpoints.base_checkpoint import layout_errors
from ..checkpoints.require_filled import require_filled
from ..checkpoints.weights_file import WeightsFile
from . import tensor_layout

if TYPE_CHECKING:
    import torch
    from torch import nn


def load_qwen(file: WeightsFile, dtype: torch.dtype, title: str) -> Any:
    """``transformers.Qwen3Model``, frozen, on the CPU. ``title`` is the family's."""
    prefix = tensor_layout.text_prefix(file.shapes) or ""
    qwen = empty_qwen(file, title)
    with layout_errors(file.path.name, "text encoder", title):
        _fill(qwen, file, tuple(f"{prefix}{part}" for part in ("embed_tokens.", "layers.", "norm.")), len(prefix), dtype)
        qwen.rotary_emb = type(qwen.rotary_emb)(config=qwen.config)  # its frequencies are not in the file
    return qwen


def empty_qwen(file: WeightsFile, title: str) -> Any:
    """``load_qwen`` without weights, on the ``meta`` device."""
    import torch
    from transformers import Qwen3Config, Qwen3Model

    with torch.device("meta"), layout_errors(file.path.name, "text encoder", title):
        qwen = Qwen3Model(Qwen3Config(**tensor_layout.text_config(file.shapes, tensor_layout.text_prefix(file.shapes) or "")))
    return qwen.eval().requires_grad_(False)


def load_adapter(file: WeightsFile, dtype: torch.dtype, title: str) -> Any:
    """``diffusers.AnimaTextConditioner``, frozen, on the CPU."""
    prefix = f"{tensor_layout.denoiser_prefix(file.shapes) or ''}{tensor_layout.ADAPTER}"
    adapter = empty_adapter(file, title)
    with layout_errors(file.path.name, "text adapter", title):
        _fill(adapter, file, (prefix,), len(prefix), dtype)
        adapter.rotary_emb = type(adapter.rotary_emb)(adapter.config.model_dim // adapter.config.num_attention_heads)
    return adapter


def empty_adapter(file: WeightsFile, title: str) -> Any:
    """``load_adapter`` without weights, on the ``meta`` device."""
    import torch
    from diffusers.models.condition_embedders.condition_embedder_anima import AnimaTextConditioner

    with torch.device("meta"), layout_errors(file.path.name, "text adapter", title):
        adapter = AnimaTextConditioner(**tensor_layout.adapter_config(file.shapes))
    return adapter.eval().requires_grad_(False)


def _fill(model: nn.Module, file: WeightsFile, wanted: tuple[str, ...], prefix: int, dtype: torch.dtype) -> None:
    """Load the tensors whose names begin with one of ``wanted``; their first ``prefix`` characters are not part of the model's names."""
    tensors = file.tensors(lambda key: key.startswith(wanted), dtype)
    model.load_state_dict({key[prefix:]: value for key, value in tensors.items()}, assign=True)
    require_filled(model)
