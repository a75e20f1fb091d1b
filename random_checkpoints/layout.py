"""Names and shapes of every tensor in an original-layout (LDM) checkpoint of SD 1.x, SD 2.x or SDXL, written down from the architecture.

It shares no code with the trainer's loader, diffusers or ComfyUI, so that a checkpoint made from it tests all three.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["weight", "residual", "embedding", "position", "norm", "bias", "position_ids"]
VOCABULARY = 49_408  # CLIP's byte-pair tokens with the two markers
TOKENS = 77


@dataclass(frozen=True)
class Tensor:
    """One tensor: ``fan_in`` is the number of inputs that a weight sums over."""

    name: str
    shape: tuple[int, ...]
    kind: Kind

    @property
    def fan_in(self) -> int:
        fan = 1
        for length in self.shape[1:]:
            fan *= length
        return fan


@dataclass(frozen=True)
class Size:
    """Widths of a checkpoint and the parameters of its family; the defaults are SD 1.x."""

    unet: tuple[int, ...]
    vae: tuple[int, int, int, int]
    text_width: int
    text_layers: int
    depths: tuple[int, ...] = (1, 1, 1, 0)  # transformer blocks of each level
    middle: int = 1  # and of the middle
    linear: bool = False  # projections of the transformers: linear, else 1x1 convolutions
    family: str = "sd1"
    second_width: int = 0  # SDXL's second text encoder, and its pooled output
    second_layers: int = 0

    @property
    def context(self) -> int:
        return self.text_width + self.second_width


FULL = Size(unet=(320, 640, 1280, 1280), vae=(128, 256, 512, 512), text_width=768, text_layers=12)
# the smallest widths that GroupNorm's 32 groups and CLIP's 64-wide heads allow; the same 192 LoRA modules as the full size
TINY = Size(unet=(32, 32, 64, 64), vae=(32, 32, 64, 64), text_width=64, text_layers=2)
# two of four levels and 72 modules, for tests that do not depend on their number: trains twice as fast
SHALLOW = Size(unet=(32, 64), vae=(32, 32, 64, 64), text_width=64, text_layers=2, depths=(1, 0))
# tiny checkpoints of the other families keep the real depths, which determine the number of LoRA modules
TINY_SD2 = Size(unet=(64, 64, 64, 64), vae=(32, 32, 64, 64), text_width=64, text_layers=3, linear=True, family="sd2")
FULL_SDXL = Size(
    unet=(320, 640, 1280), vae=(128, 256, 512, 512), text_width=768, text_layers=12, depths=(0, 2, 10), middle=10, linear=True,
    family="sdxl", second_width=1280, second_layers=32,
)  # fmt: skip
TINY_SDXL = Size(
    unet=(32, 64, 64), vae=(32, 32, 64, 64), text_width=64, text_layers=2, depths=(0, 2, 10), middle=10, linear=True,
    family="sdxl", second_width=64, second_layers=2,
)  # fmt: skip
# SDXL with few transformer blocks, for tests that do not depend on their number
SHALLOW_SDXL = Size(
    unet=(32, 64, 64), vae=(32, 32, 64, 64), text_width=64, text_layers=2, depths=(0, 1, 1), middle=1, linear=True,
    family="sdxl", second_width=64, second_layers=2,
)  # fmt: skip
SIZES = {
    **{"full": FULL, "tiny": TINY, "shallow": SHALLOW, "tiny-sd2": TINY_SD2},
    **{"full-sdxl": FULL_SDXL, "tiny-sdxl": TINY_SDXL, "shallow-sdxl": SHALLOW_SDXL},
}


def tensors(size: Size) -> list[Tensor]:
    """Every tensor of the checkpoint in a fixed order."""
    return [*_unet(size), *_vae(size), *_text_encoders(size)]


def _text_encoders(size: Size) -> Iterator[Tensor]:
    if size.family == "sd1":
        yield from _text_encoder(size, "cond_stage_model.transformer.text_model.")
    elif size.family == "sd2":
        yield from _open_clip("cond_stage_model.model.", size.text_width, size.text_layers)
    else:
        yield from _text_encoder(size, "conditioner.embedders.0.transformer.text_model.")
        yield from _open_clip("conditioner.embedders.1.model.", size.second_width, size.second_layers)


def _unet(size: Size) -> Iterator[Tensor]:
    root = "model.diffusion_model."
    widths, context, depths = size.unet, size.context, size.depths
    last = len(widths) - 1
    embedding = widths[0] * 4
    yield from _linear(f"{root}time_embed.0", widths[0], embedding)
    yield from _linear(f"{root}time_embed.2", embedding, embedding)
    if size.family == "sdxl":  # the pooled prompt and six numbers as sinusoids of 256
        yield from _linear(f"{root}label_emb.0.0", size.second_width + 6 * 256, embedding)
        yield from _linear(f"{root}label_emb.0.2", embedding, embedding)
    yield from _conv(f"{root}input_blocks.0.0", 4, widths[0], 3)

    block, channels, skips = 1, widths[0], [widths[0]]
    for level, width in enumerate(widths):
        for _ in range(2):
            yield from _unet_resnet(f"{root}input_blocks.{block}.0.", channels, width, embedding)
            channels = width
            if depths[level]:
                yield from _transformer(f"{root}input_blocks.{block}.1.", width, context, depths[level], size.linear)
            skips.append(channels)
            block += 1
        if level < last:
            yield from _conv(f"{root}input_blocks.{block}.0.op", channels, channels, 3)
            skips.append(channels)
            block += 1

    yield from _unet_resnet(f"{root}middle_block.0.", channels, channels, embedding)
    yield from _transformer(f"{root}middle_block.1.", channels, context, size.middle, size.linear)
    yield from _unet_resnet(f"{root}middle_block.2.", channels, channels, embedding)

    block = 0
    for level, width in reversed(list(enumerate(widths))):
        for index in range(3):
            yield from _unet_resnet(f"{root}output_blocks.{block}.0.", channels + skips.pop(), width, embedding)
            channels = width
            if depths[level]:
                yield from _transformer(f"{root}output_blocks.{block}.1.", width, context, depths[level], size.linear)
            if level and index == 2:
                yield from _conv(f"{root}output_blocks.{block}.{2 if depths[level] else 1}.conv", channels, channels, 3)
            block += 1

    yield from _norm(f"{root}out.0", channels)
    yield from _conv(f"{root}out.2", channels, 4, 3)


def _unet_resnet(prefix: str, inputs: int, outputs: int, embedding: int) -> Iterator[Tensor]:
    yield from _norm(f"{prefix}in_layers.0", inputs)
    yield from _conv(f"{prefix}in_layers.2", inputs, outputs, 3)
    yield from _linear(f"{prefix}emb_layers.1", embedding, outputs)
    yield from _norm(f"{prefix}out_layers.0", outputs)
    yield from _conv(f"{prefix}out_layers.3", outputs, outputs, 3, kind="residual")
    if inputs != outputs:
        yield from _conv(f"{prefix}skip_connection", inputs, outputs, 1)


def _transformer(prefix: str, width: int, context: int, depth: int, linear: bool) -> Iterator[Tensor]:
    yield from _norm(f"{prefix}norm", width)
    yield from _linear(f"{prefix}proj_in", width, width) if linear else _conv(f"{prefix}proj_in", width, width, 1)
    for index in range(depth):
        yield from _transformer_block(f"{prefix}transformer_blocks.{index}.", width, context)
    name = f"{prefix}proj_out"
    yield from _linear(name, width, width, kind="residual") if linear else _conv(name, width, width, 1, kind="residual")


def _transformer_block(block: str, width: int, context: int) -> Iterator[Tensor]:
    for attention, source in (("attn1", width), ("attn2", context)):
        yield Tensor(f"{block}{attention}.to_q.weight", (width, width), "weight")
        yield Tensor(f"{block}{attention}.to_k.weight", (width, source), "weight")
        yield Tensor(f"{block}{attention}.to_v.weight", (width, source), "weight")
        yield from _linear(f"{block}{attention}.to_out.0", width, width, kind="residual")
    yield from _linear(f"{block}ff.net.0.proj", width, width * 8)  # GEGLU: value and gate
    yield from _linear(f"{block}ff.net.2", width * 4, width, kind="residual")
    for index in (1, 2, 3):
        yield from _norm(f"{block}norm{index}", width)


def _vae(size: Size) -> Iterator[Tensor]:
    root = "first_stage_model."
    widths = size.vae
    yield from _conv(f"{root}encoder.conv_in", 3, widths[0], 3)
    channels = widths[0]
    for level, width in enumerate(widths):
        for block in range(2):
            yield from _vae_resnet(f"{root}encoder.down.{level}.block.{block}.", channels, width)
            channels = width
        if level < 3:
            yield from _conv(f"{root}encoder.down.{level}.downsample.conv", channels, channels, 3)
    yield from _vae_middle(f"{root}encoder.", channels)
    yield from _conv(f"{root}encoder.conv_out", channels, 8, 3)  # mean and log variance of 4 latent channels
    yield from _conv(f"{root}quant_conv", 8, 8, 1)

    yield from _conv(f"{root}post_quant_conv", 4, 4, 1)
    yield from _conv(f"{root}decoder.conv_in", 4, channels, 3)
    yield from _vae_middle(f"{root}decoder.", channels, norm_out=False)
    for level, width in reversed(list(enumerate(widths))):
        for block in range(3):
            yield from _vae_resnet(f"{root}decoder.up.{level}.block.{block}.", channels, width)
            channels = width
        if level:
            yield from _conv(f"{root}decoder.up.{level}.upsample.conv", channels, channels, 3)
    yield from _norm(f"{root}decoder.norm_out", channels)
    yield from _conv(f"{root}decoder.conv_out", channels, 3, 3)


def _vae_middle(prefix: str, width: int, *, norm_out: bool = True) -> Iterator[Tensor]:
    yield from _vae_resnet(f"{prefix}mid.block_1.", width, width)
    yield from _norm(f"{prefix}mid.attn_1.norm", width)
    for part in ("q", "k", "v"):
        yield from _conv(f"{prefix}mid.attn_1.{part}", width, width, 1)
    yield from _conv(f"{prefix}mid.attn_1.proj_out", width, width, 1, kind="residual")
    yield from _vae_resnet(f"{prefix}mid.block_2.", width, width)
    if norm_out:
        yield from _norm(f"{prefix}norm_out", width)


def _vae_resnet(prefix: str, inputs: int, outputs: int) -> Iterator[Tensor]:
    yield from _norm(f"{prefix}norm1", inputs)
    yield from _conv(f"{prefix}conv1", inputs, outputs, 3)
    yield from _norm(f"{prefix}norm2", outputs)
    yield from _conv(f"{prefix}conv2", outputs, outputs, 3, kind="residual")
    if inputs != outputs:
        yield from _conv(f"{prefix}nin_shortcut", inputs, outputs, 1)


def _open_clip(root: str, width: int, layers: int) -> Iterator[Tensor]:
    yield Tensor(f"{root}positional_embedding", (TOKENS, width), "position")
    yield Tensor(f"{root}text_projection", (width, width), "weight")
    yield Tensor(f"{root}logit_scale", (), "norm")
    yield Tensor(f"{root}token_embedding.weight", (VOCABULARY, width), "embedding")
    for layer in range(layers):
        prefix = f"{root}transformer.resblocks.{layer}."
        yield from _norm(f"{prefix}ln_1", width)
        yield Tensor(f"{prefix}attn.in_proj_weight", (3 * width, width), "weight")
        yield Tensor(f"{prefix}attn.in_proj_bias", (3 * width,), "bias")
        yield from _linear(f"{prefix}attn.out_proj", width, width, kind="residual")
        yield from _norm(f"{prefix}ln_2", width)
        yield from _linear(f"{prefix}mlp.c_fc", width, width * 4)
        yield from _linear(f"{prefix}mlp.c_proj", width * 4, width, kind="residual")
    yield from _norm(f"{root}ln_final", width)


def _text_encoder(size: Size, root: str) -> Iterator[Tensor]:
    width = size.text_width
    yield Tensor(f"{root}embeddings.position_ids", (1, TOKENS), "position_ids")
    yield Tensor(f"{root}embeddings.token_embedding.weight", (VOCABULARY, width), "embedding")
    yield Tensor(f"{root}embeddings.position_embedding.weight", (TOKENS, width), "position")
    for layer in range(size.text_layers):
        prefix = f"{root}encoder.layers.{layer}."
        for part in ("k_proj", "v_proj", "q_proj"):
            yield from _linear(f"{prefix}self_attn.{part}", width, width)
        yield from _linear(f"{prefix}self_attn.out_proj", width, width, kind="residual")
        yield from _norm(f"{prefix}layer_norm1", width)
        yield from _linear(f"{prefix}mlp.fc1", width, width * 4)
        yield from _linear(f"{prefix}mlp.fc2", width * 4, width, kind="residual")
        yield from _norm(f"{prefix}layer_norm2", width)
    yield from _norm(f"{root}final_layer_norm", width)


def _conv(name: str, inputs: int, outputs: int, kernel: int, kind: Kind = "weight") -> Iterator[Tensor]:
    yield Tensor(f"{name}.weight", (outputs, inputs, kernel, kernel), kind)
    yield Tensor(f"{name}.bias", (outputs,), "bias")


def _linear(name: str, inputs: int, outputs: int, kind: Kind = "weight") -> Iterator[Tensor]:
    yield Tensor(f"{name}.weight", (outputs, inputs), kind)
    yield Tensor(f"{name}.bias", (outputs,), "bias")


def _norm(name: str, width: int) -> Iterator[Tensor]:
    yield Tensor(f"{name}.weight", (width,), "norm")
    yield Tensor(f"{name}.bias", (width,), "bias")
