"""Export LoRA: write a LoRA for other programs, with a smaller rank, or with better metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..trainer.core.counting import plural
from ..trainer.core.errors import UserError
from ..trainer.core.files.paths import safe_name
from ..trainer.core.files.reading import sha256_file
from ..trainer.core.messages import Message, join_messages
from .shared import written_files
from .shared.failures import canvas_errors
from .shared.files.folders import exports_dir, lora_names
from .shared.files.images import to_pil
from .shared.inputs.socket_types import LORA, LORA_INPUT, LoraHandle, menu_or_socket
from .shared.inputs.sockets import allow
from .shared.loras.chosen_lora import chosen_lora, inspect, menu_state
from .shared.schema import field, result, schema
from .shared.wording import on_canvas

FORMATS = ("kohya", "diffusers", "peft", "comfyui")
UNCHANGED = "as it is"
_NODE = "ExportLora"
DTYPES = (UNCHANGED, "fp16", "bf16", "fp32")
BLOCKS = (UNCHANGED, "40")  # trainer/lorafile/anima_depth.py


class ExportLora(io.ComfyNode):
    """Schema and call of Export LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help."""
        return schema(
            _NODE,
            "Export LoRA",
            "Writes a LoRA for another program to output/animelora/exports: with the key names that the program reads, "
            "a smaller rank if you like, and a title, author and trigger words in its metadata.",
            [
                menu_or_socket("lora_name", "The LoRA to export.", lora_names()),
                field(
                    io.String,
                    "file_name",
                    "Name of the new file. Replaces a file of that name in the export folder. If empty, the LoRA's name is used.",
                    default="",
                ),
                field(
                    io.Combo,
                    "format",
                    "Format of the key names. Every program reads kohya (A1111, Forge, InvokeAI, ComfyUI, diffusers), except that "
                    "diffusers needs comfyui for Anima.",
                    options=list(FORMATS),
                    default=FORMATS[0],
                ),
                field(
                    io.Combo,
                    "dtype",
                    "Number format of the weights. fp16 gives the smallest file that every program reads.",
                    options=list(DTYPES),
                    default=UNCHANGED,
                ),
                field(
                    io.Int,
                    "rank",
                    "Reduces the LoRA to this rank and reports how much is lost. 0 keeps the rank.",
                    default=0,
                    min=0,
                    max=1024,
                ),
                field(io.String, "title", "The title that model browsers show. If empty, the current one is kept.", default=""),
                field(io.String, "author", "The author. If empty, the current one is kept.", default="", advanced=True),
                field(
                    io.String,
                    "description",
                    "What the LoRA does and how to use it. If empty, the current description is kept.",
                    default="",
                    multiline=True,
                    advanced=True,
                ),
                field(
                    io.String,
                    "trigger_words",
                    "The words that activate the LoRA, separated by commas. If empty, the current ones are kept.",
                    default="",
                ),
                field(
                    io.String,
                    "tags",
                    "Words to find the LoRA by, separated by commas. If empty, the current ones are kept.",
                    default="",
                    advanced=True,
                ),
                field(
                    io.String,
                    "licence",
                    "The licence of the LoRA. If empty, the current one is kept.",
                    default="",
                    advanced=True,
                ),
                field(LORA, "lora", "A LoRA from Train LoRA. It takes precedence over the list.", optional=True),
                field(io.Image, "thumbnail", "The image that model browsers show.", optional=True),
                field(
                    io.Model,
                    "model",
                    "For DoRA in the comfyui format: the model that the LoRA will be used with. ComfyUI's own loader then applies "
                    "it exactly as trained to this model.",
                    optional=True,
                ),
                field(io.Clip, "clip", "The text encoder of the connected model, if the DoRA changes it too.", optional=True),
                field(
                    io.Combo,
                    "blocks",
                    "For a LoRA for Anima, which has 28 blocks: moves it to the same blocks of a larger model. 40 is Anima-2.9B.",
                    options=list(BLOCKS),
                    default=UNCHANGED,
                    optional=True,
                    advanced=True,
                ),
            ],
            [
                result(LORA, "lora", "The exported LoRA."),
                result(io.String, "report", "What was written, and what could not be converted exactly."),
            ],
            search=["save lora", "convert lora", "kohya", "diffusers", "resize lora", "lora metadata"],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str = LORA_INPUT, file_name: str | None = None, **_: Any) -> str:
        """Changes when the chosen file is replaced or the exported one is deleted."""
        return menu_state(lora_name) + written_files.files_fingerprint(_NODE, file_name)

    @classmethod
    def execute(
        cls,
        lora_name: str,
        file_name: str,
        format: str,
        dtype: str,
        rank: int,
        title: str,
        author: str,
        description: str,
        trigger_words: str,
        tags: str,
        licence: str,
        lora: Any = None,
        thumbnail: torch.Tensor | None = None,
        model: Any = None,
        clip: Any = None,
        blocks: str = UNCHANGED,
    ) -> io.NodeOutput:
        """Write the file."""
        texts = {"title": title, "author": author, "description": description, "trigger": trigger_words, "tags": tags, "licence": licence}
        with canvas_errors():
            allow(thumbnail=thumbnail, model=model, clip=clip)
            source = chosen_lora(lora_name, lora)
            name = safe_name(file_name.strip().removesuffix(".safetensors") or source.stem)
            target = exports_dir() / f"{name}.safetensors"
            if target.exists() and target.resolve() == source.resolve():
                raise UserError("The export would replace its source file.", "Choose another file name.", kind="lora")
            changes = {key: text.strip() for key, text in texts.items() if text.strip()}
            report = export(source, target, format, dtype, rank, changes, thumbnail, model, clip, 0 if blocks == UNCHANGED else int(blocks))
            written_files.record_file(_NODE, file_name, target)
            info = inspect(target)
            handle = LoraHandle(str(target), sha256_file(target), tuple(info.trigger_words))
            return io.NodeOutput(handle, report, ui=ui.PreviewText(report))


def export(
    source: Path,
    target: Path,
    format: str,
    dtype: str,
    rank: int,
    changes: Mapping[str, str],
    thumbnail: torch.Tensor | None,
    model: Any = None,
    clip: Any = None,
    blocks: int = 0,
) -> str:
    """Convert ``source`` to ``target`` and return a report. ``blocks`` 0 keeps the depth. Imports torch, so that is imported late."""
    from dataclasses import replace

    from ..trainer import lorafile
    from ..trainer.lorafile.thumbnail import to_data_url

    weights = lorafile.read_lora(source)
    report_lines: list[str] = []
    if rank:
        weights, loss = lorafile.reduce_rank(weights, rank)
        report_lines.append(str(loss))
    if blocks:
        weights = lorafile.move_to_depth(weights, blocks)
    described = dict(changes)
    if thumbnail is not None:
        described["thumbnail"] = to_data_url(to_pil(thumbnail[0]))
    if described:
        weights = replace(weights, metadata=lorafile.edited(weights.metadata, described))
    if model is not None:
        weights, line = _for_model(weights, format, model, clip)
        report_lines.append(line)
    converted = lorafile.convert(weights, format, None if dtype == UNCHANGED else lorafile.DTYPES[dtype])
    lorafile.write_lora(target, converted)
    info = lorafile.inspect_lora(target)
    facts = [info.format, f"rank {info.rank}", info.dtype, plural(sum(info.targets.values()), "layer"), _megabytes(target)]
    lines = [
        f"{target.name}: {', '.join(facts)}",
        str(target),
        *report_lines,
        *(Message("Note: ", note) for note in converted.notes),
        *(f"Warning: {problem}" for problem in weights.problems),
    ]
    return on_canvas(join_messages("\n", lines))


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"


def _for_model(weights: Any, format: str, model: Any, clip: Any) -> tuple[Any, str]:
    """``weights`` with DoRA for ComfyUI's own loader and ``model``, and a line for the report; unchanged when that does not apply."""
    from ..trainer.lorafile.comfyui_dora import for_comfyui, has_output_magnitudes
    from .shared.loras.original_weights import original_weights

    if format != "comfyui":
        return weights, "The model input was ignored: it only applies to the comfyui format."
    if not any(has_output_magnitudes(module) for module in weights):
        return weights, "The model input was ignored: the LoRA is not DoRA."
    changed = for_comfyui(weights, original_weights(weights, model, clip), "the model that it was exported for")
    return changed, "The DoRA was written for ComfyUI's own loader and the connected model. Keep the original for every other use."
