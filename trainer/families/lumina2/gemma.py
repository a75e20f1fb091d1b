"""Load Gemma 2 from a single file, and compute it in fp32 from weights in half precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..checkpoints.base_checkpoint import layout_errors
from ..checkpoints.require_filled import require_filled
from ..checkpoints.weights_file import WeightsFile
from . import tensor_layout

if TYPE_CHECKING:
    import torch
    from torch import nn

_ROOM = 1e9  # bytes on the GPU for a layer in fp32 and activations


def load_gemma(file: WeightsFile, dtype: torch.dtype | None, title: str) -> Any:
    """``transformers.Gemma2Model`` without its last layer and final norm, frozen, on the CPU: its output is the input of that layer.
    ``dtype`` None keeps that of the file; ``title`` is the family's."""
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


def load_for_device(file: WeightsFile, dtype: torch.dtype, device: torch.device, title: str) -> Any:
    """Gemma 2 that computes in ``dtype`` on ``device``. In fp32 it takes 10 GB, so that on a GPU its weights keep the file's dtype, and are
    converted layer by layer, as in ComfyUI. They are on the GPU if they fit, else in main memory."""
    import torch

    if device.type == "cpu" or dtype != torch.float32:
        return load_gemma(file, dtype, title).to(device)
    gemma = load_gemma(file, None, title)
    size = sum(parameter.nbytes for parameter in gemma.parameters())
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] > size + _ROOM:
        gemma.to(device)
    compute_layer_by_layer(gemma, dtype, device)
    return gemma


def compute_layer_by_layer(gemma: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Have each layer of ``gemma`` in ``dtype`` on ``device`` only while it computes. Its input has to be there already."""
    gemma.rotary_emb.to(device)
    stored: list[torch.Tensor] = []

    def fetch(layer: nn.Module, _: Any) -> None:
        for parameter in layer.parameters():
            stored.append(parameter.data)
            parameter.data = parameter.data.to(device, dtype)

    def release(layer: nn.Module, *_: Any) -> None:
        for parameter, data in zip(layer.parameters(), stored, strict=True):
            parameter.data = data
        stored.clear()

    for layer in gemma.layers:
        layer.register_forward_pre_hook(fetch)
        layer.register_forward_hook(release)


def embedded(gemma: Any, ids: torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The embeddings of ``ids`` (tokens,) in ``dtype`` on ``device``, (1, tokens, width), as ``gemma`` takes them in place of ids."""
    from torch.nn import functional as F

    table = gemma.embed_tokens.weight
    rows = F.embedding(ids.to(table.device), table).to(device, dtype)[None]
    # transformers 5 scales embeddings where it looks them up, transformers 4 after that
    return rows * gemma.config.hidden_size**0.5 if hasattr(gemma.embed_tokens, "embed_scale") else rows
