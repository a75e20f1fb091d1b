"""Which attention kernel a run uses: chosen once, by a call that really runs, and told."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..core.devices import has_cudnn_attention
from ..core.diagnosis import first_line
from ..core.errors import UserError
from ..core.messages import Message, Setting

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

    Kernel = Callable[..., torch.Tensor]

_TRIED = (1, 16, 2, 32)  # batch, tokens, heads, channels of the call that is tried


def choose_attention(asked: str, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """``("sdpa" or "xformers", why not xformers)``; the second is empty unless xformers is installed and cannot be used.

    ``auto`` takes xformers where it works, but on Hopper and newer, where torch has cuDNN's. Raises UserError when ``xformers`` is asked
    for and does not work.
    """
    if asked == "sdpa" or (asked == "auto" and has_cudnn_attention(device)):
        return "sdpa", ""
    try:
        _try_xformers(device, dtype)
    except ModuleNotFoundError as error:
        # "No module named 'xformers._C'" is an installation that is there and broken
        problem = "" if error.name == "xformers" else str(error)
    except Exception as error:  # whatever a kernel library may raise: it imports on machines where its first call fails
        problem = first_line(error)
    else:
        return "xformers", ""
    if asked == "xformers":
        raise UserError(
            f"xformers does not work on this {device.type} in {str(dtype).removeprefix('torch.')}: {problem or 'it is not installed'}.",
            Message(
                "Set ", Setting("training.attention", "sdpa"), " (as fast on current GPUs), or install the xformers that fits your torch."
            ),
            kind="dependency",
        )
    return "sdpa", problem


def use_attention(unet: nn.Module, name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Put kernel ``name`` into every attention of ``unet`` (diffusers'). On a GPU ``sdpa`` is what they have anyway."""
    if name == "sdpa" and device.type != "cpu":
        return
    from torch import nn

    kernel = _kernel(name, device, dtype)
    for module in unet.modules():
        if isinstance(getattr(module, "to_q", None), nn.Module) and Processor.fits(module):
            module.set_processor(Processor(kernel))  # type: ignore[operator]


class Processor:
    """diffusers' processor interface for the plain attentions of a UNet: queries, keys and values of the same input are computed
    together, and nothing is divided by one.

    ``kernel`` takes queries, keys and values (batch, tokens, heads, channels) and gives the first one's shape.
    """

    def __init__(self, kernel: Kernel) -> None:
        from .lora_layers import together

        self._kernel, self._together = kernel, together

    @staticmethod
    def fits(attention: Any) -> bool:
        """Whether it is an attention of Stable Diffusion's UNet."""
        norms = (attention.group_norm, attention.spatial_norm, attention.norm_q, attention.norm_k, attention.norm_cross)
        return not any(norms) and not attention.residual_connection and attention.rescale_output_factor == 1.0

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None, *_: Any, **__: Any
    ) -> torch.Tensor:
        """``hidden_states`` (batch, tokens, width) attends to ``encoder_hidden_states`` (batch, tokens, context), or to itself."""
        if encoder_hidden_states is None:
            parts = self._together(hidden_states, (attn.to_q, attn.to_k, attn.to_v))
        else:
            parts = [attn.to_q(hidden_states), *self._together(encoder_hidden_states, (attn.to_k, attn.to_v))]
        query, key, value = (part.unflatten(-1, (attn.heads, -1)) for part in parts)
        mixed = self._kernel(query, key, value).flatten(-2)
        result: torch.Tensor = attn.to_out[1](attn.to_out[0](mixed.to(query.dtype)))
        return result


def _kernel(name: str, device: torch.device, dtype: torch.dtype) -> Kernel:
    if name == "xformers":
        kernel: Kernel = importlib.import_module("xformers.ops").memory_efficient_attention
        return kernel
    from torch.nn.functional import scaled_dot_product_attention

    if device.type == "cpu" and dtype.itemsize == 2:
        from . import cpu_attention

        if cpu_attention.works(dtype):
            return by_head(cpu_attention.attend)
    return by_head(scaled_dot_product_attention)


def by_head(kernel: Kernel) -> Kernel:
    """``kernel``, which takes (batch, heads, tokens, channels), for the order that a Linear leaves."""
    return lambda *parts: kernel(*(part.transpose(1, 2) for part in parts)).transpose(1, 2)


def _try_xformers(device: torch.device, dtype: torch.dtype) -> None:
    """One tiny forward and backward call. Raises whatever it raises, also for a wrong result."""
    import torch

    from .self_check import agrees

    kernel = importlib.import_module("xformers.ops").memory_efficient_attention
    inputs = [torch.randn(_TRIED, generator=torch.Generator().manual_seed(index)).to(device, dtype) for index in range(3)]
    if not agrees(kernel, by_head(torch.nn.functional.scaled_dot_product_attention), inputs, 0.02):
        raise RuntimeError("its result is wrong")
