"""Random files of Anima in the published layout: the transformer with its text adapter, Qwen3 0.6B, and Qwen-Image's VAE, all in bf16.

    python -m random_checkpoints.anima models --size small

Names and shapes are written down from the architecture and share no code with the trainer's loader, diffusers or ComfyUI. At full size
the three headers give the sizes of the published files to the byte.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from random_checkpoints.random_values import to_bf16, uniform
from trainer.core.files.writing import atomic_path

Shape = tuple[int, ...]
Layout = dict[str, Shape]

DENOISER = "diffusion_models/anima-base-v1.0.safetensors"
TEXT_ENCODER = "text_encoders/qwen_3_06b_base.safetensors"
VAE = "vae/qwen_image_vae.safetensors"
_HEAD, _ADAPTER_HEAD, _MODULATION = 128, 64, 256
_LATENTS, _PATCH = 16, 2 * 2
_T5_TOKENS, _QWEN_TOKENS = 32_128, 151_936
_RESIDUAL_GAIN = 0.5  # for branches that are added to their input


@dataclass(frozen=True)
class Size:
    """Widths and depths; the defaults are the published ones. Heads of the transformer and of Qwen3 are 128 wide, the adapter's 64."""

    width: int = 2048
    blocks: int = 28
    text: int = 1024  # the width of Qwen3 and of the adapter
    adapter_blocks: int = 6
    qwen_blocks: int = 28
    qwen_heads: int = 16  # of the queries; keys and values have half as many
    vae: int = 96


SIZES = {
    "full": Size(),
    "shallow": Size(blocks=4),  # for benchmarks
    "small": Size(blocks=2),  # recognised by ComfyUI
    "tiny": Size(width=128, blocks=2, text=64, adapter_blocks=1, qwen_blocks=1, qwen_heads=2, vae=8),  # for the trainer alone
}


def make_anima(folder: Path, size: str = "tiny", seed: int = 0) -> Path:
    """Write the three files below ``folder``, in ComfyUI's folders, and return the path of the transformer's."""
    for name, (layout, metadata) in layouts(SIZES[size]).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            file.write(header(layout, metadata))
            for key in sorted(layout):
                for part in _values(key, layout[key], seed):
                    part.tofile(file)
    return folder / DENOISER


def make_empty_anima(folder: Path, size: str = "full") -> Path:
    """Write sparse files with whole headers and zeros for tensors, and return the path of the transformer's."""
    for name, (layout, metadata) in layouts(SIZES[size]).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(header(layout, metadata))
            file.truncate(file_size(layout, metadata))
    return folder / DENOISER


def layouts(size: Size) -> dict[str, tuple[Layout, dict[str, str]]]:
    """Shapes by tensor name, and metadata, of each file."""
    return {
        DENOISER: ({f"net.{name}": shape for name, shape in [*_denoiser(size), *_adapter(size)]}, {}),
        TEXT_ENCODER: ({f"model.{name}": shape for name, shape in _qwen(size)}, {"format": "pt"}),
        VAE: (dict(_vae(size.vae)), {}),
    }


def header(layout: Layout, metadata: dict[str, str]) -> bytes:
    """The header of a safetensors file of bf16 tensors in the order of their names, padded to 8 bytes."""
    table: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name in sorted(layout):
        end = offset + 2 * math.prod(layout[name])
        table[name] = {"dtype": "BF16", "shape": list(layout[name]), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def file_size(layout: Layout, metadata: dict[str, str]) -> int:
    """Bytes of the file."""
    return len(header(layout, metadata)) + sum(2 * math.prod(shape) for shape in layout.values())


def _denoiser(size: Size) -> Iterator[tuple[str, Shape]]:
    width, hidden = size.width, 4 * size.width
    yield "x_embedder.proj.1.weight", (width, (_LATENTS + 1) * _PATCH)
    yield "t_embedder.1.linear_1.weight", (width, width)
    yield "t_embedder.1.linear_2.weight", (3 * width, width)
    yield "t_embedding_norm.weight", (width,)
    for index in range(size.blocks):
        block = f"blocks.{index}."
        for attention, source in (("self_attn", width), ("cross_attn", size.text)):
            for part, inputs in (("q", width), ("k", source), ("v", source), ("output", width)):
                yield f"{block}{attention}.{part}_proj.weight", (width, inputs)
            for part in ("q", "k"):
                yield f"{block}{attention}.{part}_norm.weight", (_HEAD,)
        yield f"{block}mlp.layer1.weight", (hidden, width)
        yield f"{block}mlp.layer2.weight", (width, hidden)
        for part in ("self_attn", "cross_attn", "mlp"):
            yield f"{block}adaln_modulation_{part}.1.weight", (_MODULATION, width)
            yield f"{block}adaln_modulation_{part}.2.weight", (3 * width, _MODULATION)
    yield "final_layer.linear.weight", (_LATENTS * _PATCH, width)
    yield "final_layer.adaln_modulation.1.weight", (_MODULATION, width)
    yield "final_layer.adaln_modulation.2.weight", (2 * width, _MODULATION)


def _adapter(size: Size) -> Iterator[tuple[str, Shape]]:
    width = size.text
    yield "llm_adapter.embed.weight", (_T5_TOKENS, width)
    for index in range(size.adapter_blocks):
        block = f"llm_adapter.blocks.{index}."
        for norm in ("norm_self_attn", "norm_cross_attn", "norm_mlp"):
            yield f"{block}{norm}.weight", (width,)
        for attention in ("self_attn", "cross_attn"):
            for part in ("q", "k", "v", "o"):
                yield f"{block}{attention}.{part}_proj.weight", (width, width)
            for part in ("q", "k"):
                yield f"{block}{attention}.{part}_norm.weight", (_ADAPTER_HEAD,)
        for layer, shape in (("0", (4 * width, width)), ("2", (width, 4 * width))):
            yield f"{block}mlp.{layer}.weight", shape
            yield f"{block}mlp.{layer}.bias", shape[:1]
    yield "llm_adapter.out_proj.weight", (width, width)
    yield "llm_adapter.out_proj.bias", (width,)
    yield "llm_adapter.norm.weight", (width,)


def _qwen(size: Size) -> Iterator[tuple[str, Shape]]:
    width, queries = size.text, size.qwen_heads * _HEAD
    yield "embed_tokens.weight", (_QWEN_TOKENS, width)
    for index in range(size.qwen_blocks):
        layer = f"layers.{index}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}{norm}.weight", (width,)
        shapes = {"q": (queries, width), "k": (queries // 2, width), "v": (queries // 2, width), "o": (width, queries)}
        for part, shape in shapes.items():
            yield f"{layer}self_attn.{part}_proj.weight", shape
        for part in ("q", "k"):
            yield f"{layer}self_attn.{part}_norm.weight", (_HEAD,)
        for part in ("gate", "up"):
            yield f"{layer}mlp.{part}_proj.weight", (3 * width, width)
        yield f"{layer}mlp.down_proj.weight", (width, 3 * width)
    yield "norm.weight", (width,)


def _vae(base: int) -> Iterator[tuple[str, Shape]]:
    """Wan 2.1's VAE: convolutions over time, height and width."""
    yield from _conv("encoder.conv1", 3, base, (3, 3, 3))
    widths = [base, base, 2 * base, 4 * base, 4 * base]
    place = 0
    for level, (inputs, outputs) in enumerate(pairwise(widths)):
        for block in range(2):
            yield from _residual(f"encoder.downsamples.{place}", inputs if block == 0 else outputs, outputs)
            place += 1
        if level < 3:
            yield from _conv(f"encoder.downsamples.{place}.resample.1", outputs, outputs, (3, 3))
            if level > 0:
                yield from _conv(f"encoder.downsamples.{place}.time_conv", outputs, outputs, (3, 1, 1))
            place += 1
    yield from _middle("encoder", widths[-1])
    yield "encoder.head.0.gamma", (widths[-1], 1, 1, 1)
    yield from _conv("encoder.head.2", widths[-1], 2 * _LATENTS, (3, 3, 3))
    yield from _conv("conv1", 2 * _LATENTS, 2 * _LATENTS, (1, 1, 1))

    yield from _conv("conv2", _LATENTS, _LATENTS, (1, 1, 1))
    widths = [4 * base, 4 * base, 4 * base, 2 * base, base]
    yield from _conv("decoder.conv1", _LATENTS, widths[0], (3, 3, 3))
    yield from _middle("decoder", widths[0])
    place = 0
    for level, (inputs, outputs) in enumerate(pairwise(widths)):
        inputs = inputs if level == 0 else inputs // 2  # the upsampling before it halves the channels
        for block in range(3):
            yield from _residual(f"decoder.upsamples.{place}", inputs if block == 0 else outputs, outputs)
            place += 1
        if level < 3:
            yield from _conv(f"decoder.upsamples.{place}.resample.1", outputs, outputs // 2, (3, 3))
            if level < 2:
                yield from _conv(f"decoder.upsamples.{place}.time_conv", outputs, 2 * outputs, (3, 1, 1))
            place += 1
    yield "decoder.head.0.gamma", (widths[-1], 1, 1, 1)
    yield from _conv("decoder.head.2", widths[-1], 3, (3, 3, 3))


def _residual(prefix: str, inputs: int, outputs: int) -> Iterator[tuple[str, Shape]]:
    yield f"{prefix}.residual.0.gamma", (inputs, 1, 1, 1)
    yield from _conv(f"{prefix}.residual.2", inputs, outputs, (3, 3, 3))
    yield f"{prefix}.residual.3.gamma", (outputs, 1, 1, 1)
    yield from _conv(f"{prefix}.residual.6", outputs, outputs, (3, 3, 3))
    if inputs != outputs:
        yield from _conv(f"{prefix}.shortcut", inputs, outputs, (1, 1, 1))


def _middle(prefix: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield from _residual(f"{prefix}.middle.0", width, width)
    yield f"{prefix}.middle.1.norm.gamma", (width, 1, 1)
    yield from _conv(f"{prefix}.middle.1.to_qkv", width, 3 * width, (1, 1))
    yield from _conv(f"{prefix}.middle.1.proj", width, width, (1, 1))
    yield from _residual(f"{prefix}.middle.2", width, width)


def _conv(name: str, inputs: int, outputs: int, kernel: Shape) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs, *kernel)
    yield f"{name}.bias", (outputs,)


def _values(name: str, shape: Shape, seed: int) -> Iterator[npt.NDArray[np.uint16]]:
    """The tensor in bf16: scales that keep activations near unit size; norms of 1 and biases of 0."""
    count = math.prod(shape)
    if name.endswith((".gamma", "norm.weight")) or (len(shape) == 1 and not name.endswith(".bias")):
        yield to_bf16(np.ones(count, dtype=np.float32))
        return
    if name.endswith(".bias"):
        yield to_bf16(np.zeros(count, dtype=np.float32))
        return
    deviation = 0.5 if "embed." in name or "embed_tokens" in name else 1 / math.sqrt(math.prod(shape[1:]))
    if any(part in name for part in ("output_proj", "o_proj", "layer2", "down_proj", "mlp.2", "residual.6", "middle.1.proj")):
        deviation *= _RESIDUAL_GAIN
    for values in uniform(name, seed, count, deviation):
        yield to_bf16(values)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write random files of Anima in the published layout.")
    parser.add_argument("models", type=Path, help="the folder that gets diffusion_models, text_encoders and vae")
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(make_anima(args.models, args.size, args.seed))


if __name__ == "__main__":
    main()
