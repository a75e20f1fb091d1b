"""What Style Compare and Epoch Compare share: their widgets, and painting every cell of a grid with one seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io

from ....trainer.core.errors import UserError
from ..browser import show_text
from ..comfyui import core_nodes
from ..files.images import from_pil, to_pil
from ..loras.apply_lora import patch
from ..schema import field
from .draw_grid import Block, draw

_MOST_CELLS = 400  # a grid beyond that is no longer looked at, and takes hours


@dataclass(frozen=True)
class Setting:
    """What one cell is painted with, besides the prompt."""

    lora: Path
    strength: float
    guidance: float
    move: float = 1.0


@dataclass(frozen=True)
class Easel:
    """What all cells have in common. ``made_for`` is the kind of model of the LoRA, in words."""

    model: Any
    clip: Any
    vae: Any
    latent: Any
    negative: str
    seed: int
    steps: int
    sampler_name: str
    scheduler: str
    made_for: str


def prompt_fields() -> list[Any]:
    """The widgets for what is painted."""
    return [
        field(
            io.String,
            "prompts",
            "One prompt per line; each gets its own block of the grid.",
            default="anime_face girl, high quality\nanime_face boy with glasses, high quality",
            multiline=True,
        ),
        field(
            io.String,
            "negative",
            "What should not be in the pictures.",
            default="lowres, blurry, bad anatomy, photo",
            multiline=True,
        ),
    ]


def painting_fields() -> list[Any]:
    """The widgets for how it is painted."""
    return [
        field(io.Int, "steps", "Painting steps of each picture.", default=25, min=1, max=10_000),
        *core_nodes.sampler_fields(),
        field(
            io.Int,
            "seed",
            "The dice: all pictures of the grid use the same number, so that only the settings differ.",
            default=0,
            min=0,
            max=0xFFFF_FFFF_FFFF_FFFF,
            control_after_generate=True,
        ),
    ]


def hang(
    texts: Sequence[str], painted: list[list[list[torch.Tensor]]], rows: list[str], columns: list[str], source: Any = None
) -> io.NodeOutput:
    """Both outputs of a comparing node: what ``paint`` gave as one labelled grid, and its pictures alone."""
    blocks = [Block(text, [[to_pil(cell[0]) for cell in row] for row in block]) for text, block in zip(texts, painted, strict=True)]
    grid = draw(blocks, rows, columns, source=source)
    return io.NodeOutput(from_pil(grid), torch.cat([cell for block in painted for row in block for cell in row]))


def paint(easel: Easel, node_id: Any, texts: Sequence[str], rows: Sequence[Sequence[Setting]]) -> list[list[list[torch.Tensor]]]:
    """One picture for each prompt, row and column, in this order; cells of the same setting are painted once.

    Raises UserError when there would be too many.
    """
    total = len({setting for row in rows for setting in row}) * len(texts)
    if total > _MOST_CELLS:
        raise UserError(
            f"This would be {total} pictures; at most {_MOST_CELLS} fit in one grid.", "Use fewer prompts, strengths, guidances or steps."
        )
    painted: dict[tuple[str, Setting], torch.Tensor] = {}
    for row in rows:
        for look in dict.fromkeys((setting.lora, setting.strength) for setting in row):
            settings = [s for s in dict.fromkeys(row) if (s.lora, s.strength) == look]
            patched = patch(easel.model, easel.clip, *look, look[1], made_for=easel.made_for)
            avoid = core_nodes.encode_text(patched.clip, easel.negative)
            for text in texts:
                wanted = core_nodes.encode_text(patched.clip, text)
                for setting in settings:
                    comfy.model_management.throw_exception_if_processing_interrupted()
                    show_text(node_id, f"picture {len(painted) + 1} of {total}")
                    sampled = core_nodes.sample(
                        patched.model,
                        easel.seed,
                        easel.steps,
                        setting.guidance,
                        easel.sampler_name,
                        easel.scheduler,
                        wanted,
                        avoid,
                        easel.latent,
                        setting.move,
                    )
                    painted[text, setting] = core_nodes.decode(easel.vae, sampled)[:1]
    return [[[painted[text, setting] for setting in row] for row in rows] for text in texts]
