"""Style Compare and Epoch Compare: their common widgets, sampling every cell of a grid with one seed, and rendering the grid."""

from __future__ import annotations

import logging
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
from ..loras.apply_lora import MadeFor, apply_lora
from ..schema import field
from .draw_grid import Block, draw

log = logging.getLogger("animelora")

_MOST_CELLS = 400  # larger grids take hours and are too large to view


@dataclass(frozen=True)
class CellSettings:
    """The settings of one cell besides the prompt."""

    lora: Path
    strength: float
    guidance: float
    denoise: float = 1.0


@dataclass(frozen=True)
class GridSettings:
    """The settings that all cells share, and the model that the LoRA was made for."""

    model: Any
    clip: Any
    vae: Any
    latent: Any
    negative: str
    seed: int
    steps: int
    sampler_name: str
    scheduler: str
    made_for: MadeFor
    warning: str = ""  # about the LoRA and the model, shown in the node


def model_fields() -> list[Any]:
    """The inputs for the model, without the LoRA that is compared."""
    return [
        field(io.Model, "model", "The model without the LoRA (directly from the loader)."),
        field(io.Clip, "clip", "The text encoder without the LoRA."),
        field(io.Vae, "vae", "The VAE of the model."),
    ]


def prompt_fields() -> list[Any]:
    """The widgets for the prompts."""
    return [
        field(
            io.String,
            "prompts",
            "One prompt per line. Each gets its own block in the grid.",
            default="anime_face girl, high quality\nanime_face boy with glasses, high quality",
            multiline=True,
        ),
        field(
            io.String,
            "negative",
            "What the images should not show.",
            default="lowres, blurry, bad anatomy, photo",
            multiline=True,
        ),
    ]


def sampling_fields() -> list[Any]:
    """The widgets for sampling."""
    return [
        field(io.Int, "steps", "Number of sampling steps of each image.", default=25, min=1, max=10_000),
        *core_nodes.sampler_fields(),
        field(
            io.Int,
            "seed",
            "Random seed. All images of the grid use the same one, so that only the settings differ.",
            default=0,
            min=0,
            max=0xFFFF_FFFF_FFFF_FFFF,
            control_after_generate=True,
        ),
    ]


def render_grid(
    texts: Sequence[str], images: list[list[list[torch.Tensor]]], rows: list[str], columns: list[str], source: Any = None
) -> io.NodeOutput:
    """Both outputs of a comparing node: the results of ``sample_cells`` as one labelled grid, and as a batch."""
    blocks = [Block(text, [[to_pil(cell[0]) for cell in row] for row in block]) for text, block in zip(texts, images, strict=True)]
    grid = draw(blocks, rows, columns, source=source)
    return io.NodeOutput(from_pil(grid), torch.cat([cell for block in images for row in block for cell in row]))


def sample_cells(
    shared: GridSettings, node_id: Any, texts: Sequence[str], rows: Sequence[Sequence[CellSettings]]
) -> list[list[list[torch.Tensor]]]:
    """One image for each prompt, row and column, in this order. Cells with the same settings are sampled once.

    Raises UserError when there are too many.
    """
    total = len({cell for row in rows for cell in row}) * len(texts)
    if total > _MOST_CELLS:
        raise UserError(
            f"This grid would need {total} images. The maximum is {_MOST_CELLS}.", "Use fewer prompts, strengths, guidances or steps."
        )
    if shared.warning:
        log.warning("%s", shared.warning)
    images: dict[tuple[str, CellSettings], torch.Tensor] = {}
    for row in rows:
        for lora, strength in dict.fromkeys((cell.lora, cell.strength) for cell in row):
            cells = [cell for cell in dict.fromkeys(row) if (cell.lora, cell.strength) == (lora, strength)]
            applied = apply_lora(shared.model, shared.clip, lora, strength, strength, made_for=shared.made_for)
            negative = core_nodes.encode_text(applied.clip, shared.negative)
            for text in texts:
                positive = core_nodes.encode_text(applied.clip, text)
                for cell in cells:
                    comfy.model_management.throw_exception_if_processing_interrupted()
                    count = f"image {len(images) + 1} of {total}"
                    show_text(node_id, f"{shared.warning}\n{count}" if shared.warning else count)
                    sampled = core_nodes.sample(
                        applied.model,
                        shared.seed,
                        shared.steps,
                        cell.guidance,
                        shared.sampler_name,
                        shared.scheduler,
                        positive,
                        negative,
                        shared.latent,
                        cell.denoise,
                    )
                    images[text, cell] = core_nodes.decode_latents(shared.vae, sampled)[:1]
    return [[[images[text, cell] for cell in row] for row in rows] for text in texts]
