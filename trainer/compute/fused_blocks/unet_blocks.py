"""diffusers' UNet blocks with fewer passes over memory, for a frozen UNet. Imports torch and diffusers: import this module late.

Between its matrix products a UNet normalises, activates and adds, which takes longer than the products on a fast GPU. Here GroupNorm and
SiLU are one kernel that keeps images channels last (group_norm_kernels.py). Biases of convolutions, the time embedding and residuals are
added by the following norm, or by the sum at the end of the block, and their gradients likewise in the backward pass. Norms compute in the
dtype of their input, where autocast would make them write fp32, which the next layer reads three times.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn
from torch.nn import functional

from ..attention_processor import Processor, heads_first
from .elementwise_kernels import add, geglu
from .group_norm_kernels import group_norm
from .layer_norm_kernels import layer_norm


def fuse(unet: nn.Module) -> None:
    """Change the classes of the blocks of ``unet`` in place, before LoRA goes in. Other blocks than Stable Diffusion's stay."""
    for module in list(unet.modules()):
        if (fused := _FUSED.get(type(module))) is not None and fused.fits(module):  # type: ignore[attr-defined]
            module.__class__ = fused
        elif isinstance(module, Attention) and type(module.processor) is AttnProcessor2_0 and Processor.fits(module):
            module.set_processor(Processor(heads_first(functional.scaled_dot_product_attention)))


class FusedGroupNorm(nn.GroupNorm):
    """GroupNorm of channels-last images."""

    @staticmethod
    def fits(norm: Any) -> bool:
        """Whether it has weights."""
        return bool(norm.affine)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(batch, channels, height, width) to the same."""
        return group_norm(input, self, silu=False)[1]


class FusedGeglu(GEGLU):  # type: ignore[misc]
    """Reads both halves of the projection once."""

    @staticmethod
    def fits(module: Any) -> bool:
        """Always."""
        return True

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(..., in) to (..., out)."""
        return geglu(self.proj(hidden_states))


class FusedResnet(ResnetBlock2D):  # type: ignore[misc]
    """Two norms with their activations, two convolutions and one sum."""

    @staticmethod
    def fits(block: Any) -> bool:
        """Whether it is a block of Stable Diffusion's UNet."""
        plain = block.upsample is None and block.downsample is None and not block.skip_time_act
        silu = isinstance(block.nonlinearity, nn.SiLU) and block.time_embedding_norm == "default"
        return bool(plain and silu and block.output_scale_factor == 1.0 and isinstance(block.norm1, nn.GroupNorm))

    def forward(self, input_tensor: torch.Tensor, temb: torch.Tensor | None, *args: Any, **kwargs: Any) -> torch.Tensor:
        """``input_tensor`` (batch, in, height, width), ``temb`` (batch, width); (batch, out, height, width)."""
        input_tensor, hidden = group_norm(input_tensor, self.norm1, silu=True)
        hidden, shift = _convolved(self.conv1, hidden)
        if self.time_emb_proj is not None and temb is not None:
            time = self.time_emb_proj(self.nonlinearity(temb))
            if time.requires_grad:  # LoRA adapts it: the kernel computes no gradient of what it adds
                hidden = hidden + time[:, :, None, None]
            else:
                shift = time if shift is None else time.float() + shift.float()
        if shift is not None and shift.ndim == 1:
            shift = shift.expand(len(hidden), -1)
        _, hidden = group_norm(hidden, self.norm2, silu=True, shift=shift)
        hidden, bias = _convolved(self.conv2, self.dropout(hidden))
        if self.conv_shortcut is not None:
            input_tensor, more = _convolved(self.conv_shortcut, input_tensor)
            bias = more if bias is None else bias if more is None else bias + more
        return add(hidden, input_tensor, bias)


class FusedTransformer(Transformer2DModel):  # type: ignore[misc]
    """Turns images into rows and back without a copy."""

    @staticmethod
    def fits(block: Any) -> bool:
        """Whether its inputs are images, as in every UNet."""
        return bool(block.is_input_continuous)

    def _get_output_for_continuous_inputs(
        self, hidden_states: torch.Tensor, residual: torch.Tensor, batch_size: int, height: int, width: int, inner_dim: int
    ) -> torch.Tensor:
        def image(rows: torch.Tensor) -> torch.Tensor:
            return rows.reshape(batch_size, height, width, -1).permute(0, 3, 1, 2)

        projected = image(self.proj_out(hidden_states)) if self.use_linear_projection else self.proj_out(image(hidden_states))
        return add(projected, residual, None)


class FusedBlock(BasicTransformerBlock):  # type: ignore[misc]
    """Every sum is computed by the norm that follows it."""

    @staticmethod
    def fits(block: Any) -> bool:
        """Whether it is a block of Stable Diffusion's UNet."""
        plain = block.norm_type == "layer_norm" and block.pos_embed is None and block.attn2 is not None and not block.only_cross_attention
        return bool(plain and all(norm.elementwise_affine and norm.bias is not None for norm in (block.norm1, block.norm2, block.norm3)))

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        timestep: Any = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Any = None,
        added_cond_kwargs: Any = None,
    ) -> torch.Tensor:
        """``hidden_states`` (batch, tokens, width) to the same."""
        if attention_mask is not None or encoder_attention_mask is not None or cross_attention_kwargs or self._chunk_size is not None:
            masks = (attention_mask, encoder_hidden_states, encoder_attention_mask)
            result: torch.Tensor = super().forward(hidden_states, *masks, timestep, cross_attention_kwargs, class_labels, added_cond_kwargs)
            return result
        hidden, normed = layer_norm(hidden_states, None, self.norm1)
        hidden, normed = layer_norm(self.attn1(normed), hidden, self.norm2)
        hidden, normed = layer_norm(self.attn2(normed, encoder_hidden_states=encoder_hidden_states), hidden, self.norm3)
        changed: torch.Tensor = self.ff(normed) + hidden
        return changed


_FUSED: dict[type, type] = {
    nn.GroupNorm: FusedGroupNorm,
    GEGLU: FusedGeglu,
    ResnetBlock2D: FusedResnet,
    Transformer2DModel: FusedTransformer,
    BasicTransformerBlock: FusedBlock,
}


def _convolved(layer: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The convolution without its bias, and the bias. Other layers (LoRA, packed weights) add their bias themselves."""
    if type(layer) is not nn.Conv2d or layer.padding_mode != "zeros":
        return layer(x), None
    return functional.conv2d(x, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups), layer.bias
