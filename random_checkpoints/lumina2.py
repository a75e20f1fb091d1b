"""Random checkpoints of Lumina 2 in ComfyUI's layout: transformer, Gemma 2 with its tokenizer, and Flux' VAE in one file, all in bf16.

    python -m random_checkpoints.lumina2 netayume.safetensors --size tiny

Names and shapes are written down from the architecture and share no code with the trainer's loader, diffusers or ComfyUI. The tokenizer is
a small one with Gemma's settings, as Gemma's cannot be made.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from random_checkpoints.random_values import to_bf16, uniform
from trainer.core.files.writing import atomic_path

Shape = tuple[int, ...]
Layout = dict[str, Shape]

DENOISER, TEXT_ENCODER, VAE = "model.diffusion_model.", "text_encoders.gemma2_2b.", "vae."
TOKENIZER = "text_encoders.spiece_model"
_LATENTS, _PATCH, _TIME, _TEXT_HEAD = 16, 2 * 2, 256, 256
_RESIDUAL_GAIN = 0.5  # for branches that are added to their input
_WORDS = """
You are an assistant designed to generate anime images based on textual prompts. You are an assistant designed to generate high-quality
images with the highest degree of image-text alignment based on textual prompts. <Prompt Start> masterpiece, best quality, 1girl, solo,
looking at viewer, smile, long hair, blue eyes, hatsune miku (vocaloid), school uniform, a girl stands in the rain under a red umbrella,
worst quality, low quality, blurry, a cat sleeps on a chair, portrait of a woman with short hair and a hat, green background
"""


@dataclass(frozen=True)
class Size:
    """Widths and depths; the defaults are the published ones. Heads of Gemma 2 are 256 wide."""

    width: int = 2304
    heads: int = 24
    kv_heads: int = 8
    blocks: int = 26
    refiners: int = 2  # for captions, and as many for the image
    hidden: int = 9216
    text: int = 2304
    text_hidden: int = 9216
    text_layers: int = 26
    text_heads: int = 8  # of the queries; keys and values have half as many
    vocabulary: int = 256_000
    vae: int = 128

    @property
    def modulation(self) -> int:
        """Width of the timestep's embedding."""
        return min(self.width, 1024)


SIZES = {
    "full": Size(),
    "tiny": Size(
        width=96, heads=4, kv_heads=2, blocks=2, refiners=2, hidden=512, text=64, text_hidden=128, text_layers=3, text_heads=2,
        vocabulary=640, vae=32,
    ),
}  # fmt: skip


def make_lumina2(path: Path, size: str = "tiny", seed: int = 0) -> Path:
    """Write the checkpoint to ``path`` and return it."""
    shapes, tokenizer = layout(SIZES[size]), make_tokenizer()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(_header(shapes, len(tokenizer)))
        for key in sorted(shapes):
            for part in _values(key, shapes[key], seed):
                part.tofile(file)
        file.write(tokenizer)
    return path


def make_empty_lumina2(path: Path, size: str = "full") -> Path:
    """Write a sparse file with a whole header and zeros for tensors to ``path`` and return it."""
    shapes = layout(SIZES[size])
    header = _header(shapes, tokenizer=8)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + 2 * sum(map(math.prod, shapes.values())) + 8)
    return path


def make_tokenizer() -> bytes:
    """A sentencepiece model with Gemma's settings: BPE with bytes for unknown characters, no space before the first word."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_WORDS.split("\n")), model_writer=model, model_type="bpe", vocab_size=480, hard_vocab_limit=False,
        byte_fallback=True, split_digits=True, add_dummy_prefix=False, normalization_rule_name="identity", remove_extra_whitespaces=False,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def layout(size: Size) -> Layout:
    """Shapes by tensor name, without the tokenizer."""
    parts = ((DENOISER, _denoiser(size)), (TEXT_ENCODER, _gemma(size)), (VAE, _vae(size.vae)))
    return {f"{prefix}{name}": shape for prefix, shapes in parts for name, shape in shapes}


def _header(shapes: Layout, tokenizer: int) -> bytes:
    """The header of the safetensors file: bf16 tensors in the order of their names, then ``tokenizer`` bytes."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in sorted(shapes):
        end = offset + 2 * math.prod(shapes[name])
        table[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [offset, end]}
        offset = end
    table[TOKENIZER] = {"dtype": "U8", "shape": [tokenizer], "data_offsets": [offset, offset + tokenizer]}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _denoiser(size: Size) -> Iterator[tuple[str, Shape]]:
    width, modulation = size.width, size.modulation
    yield from _linear("x_embedder", _LATENTS * _PATCH, width)
    yield from _linear("t_embedder.mlp.0", _TIME, modulation)
    yield from _linear("t_embedder.mlp.2", modulation, modulation)
    yield "cap_embedder.0.weight", (size.text,)
    yield from _linear("cap_embedder.1", size.text, width)
    for index in range(size.refiners):
        yield from _block(f"context_refiner.{index}.", size, modulated=False)
        yield from _block(f"noise_refiner.{index}.", size, modulated=True)
    for index in range(size.blocks):
        yield from _block(f"layers.{index}.", size, modulated=True)
    yield "norm_final.weight", (width,)  # which nothing uses
    yield from _linear("final_layer.linear", width, _LATENTS * _PATCH)
    yield from _linear("final_layer.adaLN_modulation.1", modulation, width)


def _block(prefix: str, size: Size, *, modulated: bool) -> Iterator[tuple[str, Shape]]:
    width, head = size.width, size.width // size.heads
    yield f"{prefix}attention.qkv.weight", ((size.heads + 2 * size.kv_heads) * head, width)
    yield f"{prefix}attention.out.weight", (width, width)
    for norm in ("q_norm", "k_norm"):
        yield f"{prefix}attention.{norm}.weight", (head,)
    for layer, shape in (("w1", (size.hidden, width)), ("w2", (width, size.hidden)), ("w3", (size.hidden, width))):
        yield f"{prefix}feed_forward.{layer}.weight", shape
    for norm in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"):
        yield f"{prefix}{norm}.weight", (width,)
    if modulated:
        yield from _linear(f"{prefix}adaLN_modulation.1", size.modulation, 4 * width)


def _gemma(size: Size) -> Iterator[tuple[str, Shape]]:
    width, queries = size.text, size.text_heads * _TEXT_HEAD
    yield "logit_scale", ()
    model = "transformer.model."
    yield f"{model}embed_tokens.weight", (size.vocabulary, width)
    for index in range(size.text_layers):
        layer = f"{model}layers.{index}."
        for norm in ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"):
            yield f"{layer}{norm}.weight", (width,)
        shapes = {"q": (queries, width), "k": (queries // 2, width), "v": (queries // 2, width), "o": (width, queries)}
        for part, shape in shapes.items():
            yield f"{layer}self_attn.{part}_proj.weight", shape
        for part in ("gate", "up"):
            yield f"{layer}mlp.{part}_proj.weight", (size.text_hidden, width)
        yield f"{layer}mlp.down_proj.weight", (width, size.text_hidden)
    yield f"{model}norm.weight", (width,)


def _vae(base: int) -> Iterator[tuple[str, Shape]]:
    """Stable Diffusion's autoencoder with 16 channels and without quant_conv."""
    widths = [base, 2 * base, 4 * base, 4 * base]
    yield from _conv("encoder.conv_in", 3, base)
    inputs = base
    for level, width in enumerate(widths):
        for block in range(2):
            yield from _residual(f"encoder.down.{level}.block.{block}", inputs, width)
            inputs = width
        if level < 3:
            yield from _conv(f"encoder.down.{level}.downsample.conv", width, width)
    yield from _middle("encoder", widths[-1])
    yield from _norm("encoder.norm_out", widths[-1])
    yield from _conv("encoder.conv_out", widths[-1], 2 * _LATENTS)
    yield from _conv("decoder.conv_in", _LATENTS, widths[-1])
    yield from _middle("decoder", widths[-1])
    inputs = widths[-1]
    for level in (3, 2, 1, 0):
        for block in range(3):
            yield from _residual(f"decoder.up.{level}.block.{block}", inputs, widths[level])
            inputs = widths[level]
        if level > 0:
            yield from _conv(f"decoder.up.{level}.upsample.conv", inputs, inputs)
    yield from _norm("decoder.norm_out", base)
    yield from _conv("decoder.conv_out", base, 3)


def _residual(prefix: str, inputs: int, outputs: int) -> Iterator[tuple[str, Shape]]:
    yield from _norm(f"{prefix}.norm1", inputs)
    yield from _conv(f"{prefix}.conv1", inputs, outputs)
    yield from _norm(f"{prefix}.norm2", outputs)
    yield from _conv(f"{prefix}.conv2", outputs, outputs)
    if inputs != outputs:
        yield from _conv(f"{prefix}.nin_shortcut", inputs, outputs, 1)


def _middle(prefix: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield from _residual(f"{prefix}.mid.block_1", width, width)
    yield from _norm(f"{prefix}.mid.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        yield from _conv(f"{prefix}.mid.attn_1.{part}", width, width, 1)
    yield from _residual(f"{prefix}.mid.block_2", width, width)


def _conv(name: str, inputs: int, outputs: int, kernel: int = 3) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs, kernel, kernel)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _linear(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _values(name: str, shape: Shape, seed: int) -> Iterator[npt.NDArray[np.uint16]]:
    """The tensor in bf16: scales that keep activations near unit size; norms near 1 (Gemma's, which add 1, near 0), biases near 0."""
    count = math.prod(shape)
    middle, deviation = 0.0, 0.1
    if len(shape) == 1 and name.endswith(".weight"):
        middle = 0.0 if name.startswith(TEXT_ENCODER) else 1.0
    elif len(shape) > 1:
        deviation = 0.5 if "embed_tokens" in name else 1 / math.sqrt(math.prod(shape[1:]))
        if any(part in name for part in ("attention.out", "o_proj", "w2", "down_proj", "conv2", "attn_1.proj_out")):
            deviation *= _RESIDUAL_GAIN
    for values in uniform(name, seed, count, deviation):
        yield to_bf16(values + np.float32(middle))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write a random checkpoint of Lumina 2 in ComfyUI's layout.")
    parser.add_argument("checkpoint", type=Path, help="the .safetensors file to write")
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(make_lumina2(args.checkpoint, args.size, args.seed))


if __name__ == "__main__":
    main()
