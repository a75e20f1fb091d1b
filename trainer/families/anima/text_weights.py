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
    import torch
    from transformers import Qwen3Config, Qwen3Model

    prefix = tensor_layout.text_prefix(file.shapes) or ""
    with layout_errors(file.path.name, "text encoder", title):
        config = Qwen3Config(**tensor_layout.text_config(file.shapes, prefix))
        with torch.device("meta"):
            qwen = Qwen3Model(config)
        _fill(qwen, file, tuple(f"{prefix}{part}" for part in ("embed_tokens.", "layers.", "norm.")), len(prefix), dtype)
        qwen.rotary_emb = type(qwen.rotary_emb)(config=config)  # its frequencies are not in the file
    return qwen.eval().requires_grad_(False)


def load_adapter(file: WeightsFile, dtype: torch.dtype, title: str) -> Any:
    """``diffusers.AnimaTextConditioner``, frozen, on the CPU."""
    import torch
    from diffusers.models.condition_embedders.condition_embedder_anima import AnimaTextConditioner

    prefix = f"{tensor_layout.denoiser_prefix(file.shapes) or ''}{tensor_layout.ADAPTER}"
    with layout_errors(file.path.name, "text adapter", title):
        config = tensor_layout.adapter_config(file.shapes)
        with torch.device("meta"):
            adapter = AnimaTextConditioner(**config)
        _fill(adapter, file, (prefix,), len(prefix), dtype)
        adapter.rotary_emb = type(adapter.rotary_emb)(config["model_dim"] // config["num_attention_heads"])
    return adapter.eval().requires_grad_(False)


def _fill(model: nn.Module, file: WeightsFile, wanted: tuple[str, ...], prefix: int, dtype: torch.dtype) -> None:
    """Load the tensors whose names begin with one of ``wanted``; their first ``prefix`` characters are not part of the model's names."""
    tensors = file.tensors(lambda key: key.startswith(wanted), dtype)
    model.load_state_dict({key[prefix:]: value for key, value in tensors.items()}, assign=True)
    require_filled(model)
