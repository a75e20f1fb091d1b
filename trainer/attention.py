"""Which attention kernel a run uses: chosen once, by a call that really runs, and told."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

_TRIED = (1, 16, 2, 32)  # batch, tokens, heads, channels of the call that is tried


def choose_attention(asked: str, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """``("sdpa" or "xformers", why not xformers)``; the second is empty unless xformers is installed and cannot be used.

    ``auto`` takes xformers where it works. Raises UserError when ``xformers`` is asked for and does not work.
    """
    if asked == "sdpa":
        return "sdpa", ""
    try:
        _try_xformers(device, dtype)
    except ModuleNotFoundError as error:
        # "No module named 'xformers._C'" is an installation that is there and broken
        problem = "" if error.name == "xformers" else str(error)
    except Exception as error:  # whatever a kernel library may raise: it imports on machines where its first call fails
        problem = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    else:
        return "xformers", ""
    if asked == "xformers":
        raise UserError(
            f"xformers does not work on this {device.type} in {str(dtype).removeprefix('torch.')}: {problem or 'it is not installed'}.",
            'Set training.attention = "sdpa" (as fast on current GPUs), or install the xformers that fits your torch.',
            kind="dependency",
        )
    return "sdpa", problem


def use_attention(unet: nn.Module, name: str) -> None:
    """Put kernel ``name`` into every attention of ``unet`` (diffusers'). ``sdpa`` is what they have anyway."""
    if name != "xformers":
        return
    for module in unet.modules():
        if hasattr(module, "set_processor") and hasattr(module, "to_q"):
            module.set_processor(XformersProcessor())  # type: ignore[operator]


class XformersProcessor:
    """diffusers' processor interface over ``xformers.ops.memory_efficient_attention``, for the plain attentions of a UNet:
    no mask, no normalised queries, no group norm."""

    def __init__(self) -> None:
        self._kernel = importlib.import_module("xformers.ops").memory_efficient_attention

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None, *_: Any, **__: Any
    ) -> torch.Tensor:
        """``hidden_states`` (batch, tokens, width) attends to ``encoder_hidden_states`` (batch, tokens, context), or to itself."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            projection(source).unflatten(-1, (attn.heads, -1))  # (batch, tokens, heads, channels)
            for projection, source in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        mixed = self._kernel(query, key, value).flatten(-2)
        result: torch.Tensor = attn.to_out[0](mixed.to(query.dtype))
        return result


def _try_xformers(device: torch.device, dtype: torch.dtype) -> None:
    """One tiny forward and backward call. Raises whatever it raises, also for a wrong result."""
    import torch

    kernel = importlib.import_module("xformers.ops").memory_efficient_attention
    query, key, value = (
        torch.randn(_TRIED, generator=torch.Generator().manual_seed(index)).to(device, dtype).requires_grad_(True) for index in range(3)
    )
    result = kernel(query, key, value)
    result.float().square().sum().backward()
    by_head = [tensor.transpose(1, 2) for tensor in (query, key, value)]
    expected = torch.nn.functional.scaled_dot_product_attention(by_head[0], by_head[1], by_head[2]).transpose(1, 2)
    if not torch.allclose(result.float(), expected.float(), atol=0.05) or query.grad is None or not query.grad.isfinite().all():
        raise RuntimeError("its result is wrong")
