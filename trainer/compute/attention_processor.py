"""diffusers' attention layers with another kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

    Kernel = Callable[..., torch.Tensor]


class Processor:
    """diffusers' processor interface for the plain attention layers of a UNet: queries, keys and values of the same input are computed
    together, and nothing is divided by one.

    ``kernel`` takes queries, keys and values (batch, tokens, heads, channels) and returns the queries' shape.
    """

    def __init__(self, kernel: Kernel) -> None:
        from .lora_layers import apply_together

        self._kernel, self._apply_together = kernel, apply_together

    @staticmethod
    def fits(attention: Any) -> bool:
        """Whether it is an attention layer of Stable Diffusion's UNet."""
        norms = (attention.group_norm, attention.spatial_norm, attention.norm_q, attention.norm_k, attention.norm_cross)
        return not any(norms) and not attention.residual_connection and attention.rescale_output_factor == 1.0

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None, *_: Any, **__: Any
    ) -> torch.Tensor:
        """``hidden_states`` (batch, tokens, width) attends to ``encoder_hidden_states`` (batch, tokens, context), or to itself."""
        if encoder_hidden_states is None:
            projected = self._apply_together(hidden_states, (attn.to_q, attn.to_k, attn.to_v))
        else:
            projected = [attn.to_q(hidden_states), *self._apply_together(encoder_hidden_states, (attn.to_k, attn.to_v))]
        query, key, value = (each.unflatten(-1, (attn.heads, -1)) for each in projected)
        mixed = self._kernel(query, key, value).flatten(-2)
        result: torch.Tensor = attn.to_out[1](attn.to_out[0](mixed.to(query.dtype)))
        return result


def set_kernel(denoiser: nn.Module, kernel: Kernel) -> None:
    """Make every attention layer of ``denoiser`` that fits use ``kernel``."""
    from torch import nn

    for module in denoiser.modules():
        if isinstance(getattr(module, "to_q", None), nn.Module) and Processor.fits(module):
            module.set_processor(Processor(kernel))  # type: ignore[operator]


def heads_first(kernel: Kernel) -> Kernel:
    """``kernel``, which takes (batch, heads, tokens, channels), for (batch, tokens, heads, channels) as a Linear returns it."""
    return lambda *parts: kernel(*(part.transpose(1, 2) for part in parts)).transpose(1, 2)
