"""``python -m trainer export``: convert LoRA files, lower their rank, merge them, and edit their metadata."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.counting import plural
from ..core.errors import UserError
from .strength import parse_strength

if TYPE_CHECKING:
    from ..lorafile import LoraWeights

_EXAMPLES = """examples:
  python -m trainer export style.safetensors style-diffusers.safetensors --format diffusers
  python -m trainer export style.safetensors small.safetensors --rank 8 --dtype fp16
  python -m trainer export style.safetensors both.safetensors --merge style.safetensors:0.6 pose.safetensors:0.8
  python -m trainer export style.safetensors model-with-style.safetensors --into-checkpoint model.safetensors
  python -m trainer export style.safetensors style-2.9b.safetensors --blocks 40
  python -m trainer export style.safetensors style.safetensors --overwrite --title "My style" --trigger "ohwx girl"
"""
_TEXTS = ("title", "author", "description", "trigger", "tags", "licence", "thumbnail")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command's parser."""
    parser = subparsers.add_parser(
        "export",
        help="convert a LoRA for other programs, lower its rank, merge LoRAs, edit its metadata",
        description="Convert a LoRA for other programs, lower its rank, merge LoRAs, merge into a checkpoint, edit metadata.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", help="a LoRA of any format; with --into-checkpoint also FILE:STRENGTH")
    parser.add_argument("output", type=Path, help="the .safetensors file to write")
    parser.add_argument(
        "--format",
        choices=("kohya", "diffusers", "peft", "comfyui"),
        default="kohya",
        help="naming of the keys (default kohya, which every program reads; for Anima in diffusers: comfyui)",
    )
    parser.add_argument(
        "--dtype",
        choices=("fp16", "bf16", "fp32"),
        help="number format (default: the input's; for a merge, the widest of the inputs, at least fp16)",
    )
    parser.add_argument("--rank", type=int, metavar="N", help="lower the rank to N by SVD, and print the error")
    parser.add_argument(
        "--blocks", type=int, metavar="N",
        help="move a LoRA for Anima (28 blocks) to a model with N blocks that was made from it (40: Anima-2.9B)",
    )  # fmt: skip
    parser.add_argument(
        "--merge", nargs="+", default=[], metavar="FILE:STRENGTH",
        help="merge these LoRAs; the input takes part with strength 1 unless it is among them",
    )  # fmt: skip
    parser.add_argument(
        "--base", type=Path, metavar="CKPT",
        help="with --format comfyui, for DoRA: the checkpoint that it is for, so that ComfyUI's own loader reproduces what was trained",
    )  # fmt: skip
    parser.add_argument("--into-checkpoint", type=Path, metavar="CKPT", help="merge into this checkpoint; the output is the new checkpoint")
    group = parser.add_argument_group("metadata (everything else is kept; an empty text removes an entry)")
    for name in _TEXTS:
        group.add_argument(f"--{name}", metavar="IMAGE" if name == "thumbnail" else "TEXT", help=_help(name))
    group.add_argument("--metadata", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="any entry by its full key")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the output, and print what was done."""
    from .. import lorafile

    _check_output(args)
    if args.base and args.format != "comfyui":
        raise UserError("--base is only for ComfyUI.", "Add --format comfyui, or leave --base out.", kind="lora")
    if args.into_checkpoint:
        _check_checkpoint_options(args)
    parts = _parts(args)
    loras = [(_read(path, several=len(parts) > 1), strength) for path, strength in parts]
    if args.into_checkpoint:
        count = lorafile.merge_into_checkpoint(args.into_checkpoint, loras, args.output)
        _warn(weights for weights, _ in loras)
        print(f"{args.output}: {count} weights of {args.into_checkpoint.name} changed by {len(parts)} LoRA{'s' * (len(parts) > 1)}")
        return 0
    dtype = lorafile.DTYPES[args.dtype] if args.dtype else None
    weights, report = loras[0][0], None
    if len(loras) > 1 or loras[0][1] != 1.0:
        weights, report = lorafile.merge(loras, args.rank)
        dtype = dtype or lorafile.common_dtype([part for part, _ in loras])
    elif args.rank is not None:
        weights, report = lorafile.reduce_rank(weights, args.rank)
    if report:
        print(report)
    if args.blocks is not None:
        weights = lorafile.move_to_depth(weights, args.blocks)
    if args.base:
        weights = _for_base(weights, args.base)
    converted = lorafile.convert(_described(weights, args), args.format, dtype)
    lorafile.write_lora(args.output, converted)
    for note in converted.notes:
        print(f"note: {note}")
    _warn([weights])
    info = lorafile.inspect_lora(args.output)
    entries = plural(len(info.metadata), "metadata entry", "metadata entries")
    size = f"{plural(sum(info.targets.values()), 'layer')}, {info.dtype}, {entries}"
    print(f"{args.output}: {info.format}, {info.algorithm}, rank {info.rank}, {size}")
    return 0


def _parts(args: argparse.Namespace) -> list[tuple[Path, float]]:
    """Every LoRA to merge, with its strength; only the input, with 1, if nothing is merged."""
    first = parse_strength(args.input)
    others = [parse_strength(text) for text in args.merge]
    named = any(os.path.realpath(path) == os.path.realpath(first[0]) for path, _ in others)
    return others if named else [first, *others]


def _read(path: Path, *, several: bool) -> LoraWeights:
    """A LoRA; if there are ``several``, its problems name the file."""
    from dataclasses import replace

    from ..lorafile import read_lora

    weights = read_lora(path)
    return replace(weights, problems=tuple(f"{path.name}: {problem}" for problem in weights.problems)) if several else weights


def _for_base(weights: LoraWeights, base: Path) -> LoraWeights:
    """``weights`` with its DoRA converted for ComfyUI's own loader and ``base``."""
    from ..lorafile.changing.merge_into_checkpoint import checkpoint_weights
    from ..lorafile.comfyui_dora import for_comfyui, has_output_magnitudes

    if not any(has_output_magnitudes(module) for module in weights):
        raise UserError("--base is only for DoRA, and this LoRA is not one.", "Leave --base out.", kind="lora")
    return for_comfyui(weights, checkpoint_weights(base, weights), base.name)


def _warn(loras: Iterable[LoraWeights]) -> None:
    for weights in loras:
        for problem in weights.problems:
            print(f"warning: {problem}")


def _described(weights: LoraWeights, args: argparse.Namespace) -> LoraWeights:
    from dataclasses import replace

    from ..lorafile import edited, stated_family

    changes = {name: value for name in _TEXTS if (value := getattr(args, name)) is not None}
    for text in args.metadata:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UserError(
                f"--metadata {text!r} is not KEY=VALUE.", 'Write, for example, --metadata modelspec.usage_hint="use at 0.8".', kind="lora"
            )
        changes[key.strip()] = value
    if not changes:
        return weights
    metadata = edited(weights.metadata, changes)
    family = stated_family(metadata) if weights.family == "unknown" else ""
    return replace(weights, metadata=metadata, family=family or weights.family)


def _check_checkpoint_options(args: argparse.Namespace) -> None:
    given = [name for name in ("dtype", "rank", "blocks", *_TEXTS) if getattr(args, name) is not None]
    given += ["metadata"] * bool(args.metadata) + ["format"] * (args.format != "kohya")
    if given:
        options = ", ".join(f"--{name}" for name in given)
        raise UserError(
            f"--into-checkpoint writes a checkpoint, to which {options} do{'es' * (len(given) == 1)} not apply.",
            "Leave it out, or change the LoRA first and merge it in a second step.",
            kind="lora",
        )


def _check_output(args: argparse.Namespace) -> None:
    if args.output.suffix.lower() != ".safetensors":
        raise UserError(
            f"{args.output} does not end in .safetensors.", "LoRAs and checkpoints are written as .safetensors only.", kind="lora"
        )
    if args.output.exists() and not args.overwrite:
        raise UserError(f"{args.output} exists already.", "Choose another name, or add --overwrite.", kind="lora")


def _help(name: str) -> str:
    texts = {"trigger": "trigger words", "tags": "tags, separated by commas", "thumbnail": "image that model browsers show"}
    return texts.get(name, name)
