"""``python -m trainer info``: describe a LoRA file, and say whether it can be used."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.counting import plural

if TYPE_CHECKING:
    from ..lorafile import LoraInfo, LoraWeights

_PARTS = {"unet": "UNet", "te1": "text encoder", "te2": "second text encoder", "adapter": "text adapter"}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command's parser."""
    parser = subparsers.add_parser(
        "info",
        help="describe a LoRA file: model family, format, rank, norms, trigger words, problems",
        description="Describe a LoRA file for Stable Diffusion, Anima or Lumina 2. Reads kohya, LyCORIS, DoRA, diffusers, PEFT, ComfyUI, "
        "OneTrainer and cloneofsimo files.",
        epilog="The exit status is 1 for a file that cannot be used; the reason is printed.",
    )
    parser.add_argument("file", type=Path, help="a .safetensors or .pt file, or a PEFT adapter folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the description; 0 if the file can be used, else 1."""
    from ..core.errors import UserError
    from ..lorafile import describe_lora, scan_lora

    try:
        weights = scan_lora(args.file)
    except UserError as error:
        if not args.json:
            raise
        print(json.dumps({"path": str(args.file), "usable": False, "problems": [error.message]}, ensure_ascii=True, indent=2))
        return 1
    info = describe_lora(args.file, weights)
    norms = _norms(weights) if info.usable else {}
    print(json.dumps({**info.to_json(), "norms": norms}, ensure_ascii=True, indent=2) if args.json else _text(info, norms))
    if not info.usable and not args.json:
        print(f"error: {args.file.name} cannot be used: {'; '.join(info.problems)}.", file=sys.stderr)
    return 0 if info.usable else 1


def _norms(weights: LoraWeights) -> dict[str, dict[str, float]]:
    """The Frobenius norm of each layer's change at strength 1, by part of the model and layer."""
    norms: dict[str, dict[str, float]] = {}
    for module in weights:
        norm = module.norm()
        if norm is not None:
            norms.setdefault(module.component, {})[module.name] = norm
    return norms


def _text(info: LoraInfo, norms: Mapping[str, Mapping[str, float]]) -> str:
    from ..lorafile import FAMILY_TITLES

    entries = plural(len(info.metadata), "entry", "entries")
    targets = ", ".join(f"{plural(count, 'layer')} of the {_part(info, name)}" for name, count in info.targets.items())
    ranks = f"{info.rank}" if len(info.ranks) < 2 else ", ".join(f"{rank} ({plural(count, 'layer')})" for rank, count in info.ranks.items())
    rows = {
        "title": info.title,
        "made for": f"{FAMILY_TITLES.get(info.family, info.family)} ({info.family_reason})" if info.family_reason else info.family,
        "format": f"{info.format}, {info.dtype}" if info.dtype else info.format,
        "algorithm": info.algorithm,
        "rank": ranks if info.ranks else "",
        "alpha": "" if info.alpha is None else f"{info.alpha:g}",
        "changes": targets,
        "blocks": f"{info.blocks}, at least" if info.blocks else "",
        "norms": "; ".join(_norm_text(_part(info, name), layers) for name, layers in norms.items()),
        "trigger words": ", ".join(info.trigger_words),
        "trained on": info.base,
        "prediction": info.prediction,
        "author": info.metadata.get("modelspec.author", ""),
        "description": info.metadata.get("modelspec.description", ""),
        "licence": info.metadata.get("modelspec.license", ""),
        "tags": info.metadata.get("modelspec.tags", ""),
        "metadata": f"{entries} (--json prints them, and every layer's norm)" if info.metadata else "none",
    }
    lines = [f"{name:14}{value}" for name, value in rows.items() if value]
    lines += [f"{'note':14}{note}" for note in info.notes]
    lines += [f"{'problem':14}{problem}" for problem in info.problems]
    return "\n".join([str(info.path), *lines])


def _part(info: LoraInfo, component: str) -> str:
    from ..lorafile import FAMILY_LAYOUTS

    layout = FAMILY_LAYOUTS.get(info.family)
    if component == "unet" and layout is not None and not layout.channels:
        return "transformer"
    return _PARTS.get(component, component)


def _norm_text(part: str, layers: Mapping[str, float]) -> str:
    largest = max(layers, key=lambda name: layers[name])
    mean = sum(layers.values()) / len(layers)
    return f"{part} {mean:.3g} on average, {layers[largest]:.3g} at most ({largest})"
