"""Export LoRA: the same LoRA for other programs, smaller, or with better information in it."""

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
from ..trainer.core.messages import Message, joined
from .load_lora import FROM_INPUT, chosen_lora, inspect, state_of
from .shared import written_files
from .shared.failures import canvas_errors
from .shared.files.folders import exports_dir, lora_names
from .shared.files.images import to_pil
from .shared.inputs.socket_types import LORA, Lora
from .shared.inputs.sockets import allow
from .shared.schema import field, result, schema
from .shared.wording import on_canvas

FORMATS = ("kohya", "diffusers", "peft", "comfyui")
AS_IT_IS = "as it is"
_NODE = "ExportLora"
DTYPES = (AS_IT_IS, "fp16", "bf16", "fp32")


class ExportLora(io.ComfyNode):
    """Schema and call of Export LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help."""
        return schema(
            _NODE,
            "Export LoRA",
            "Writes a LoRA for another program into output/animelora/exports: in the names that it reads, "
            "with a smaller rank if you like, and with title, author and trigger words inside.",
            [
                field(
                    io.Combo,
                    "lora_name",
                    "The LoRA to export. Not used while something is connected to the lora input.",
                    options=[FROM_INPUT, *lora_names()],
                    default=FROM_INPUT,
                ),
                field(
                    io.String,
                    "file_name",
                    "The name of the new file. A file of that name in the export folder is replaced. Empty keeps the LoRA's name.",
                    default="",
                ),
                field(
                    io.Combo,
                    "format",
                    "Whose key names to use. kohya is read by every program (A1111, Forge, InvokeAI, ComfyUI, diffusers).",
                    options=list(FORMATS),
                    default=FORMATS[0],
                ),
                field(
                    io.Combo,
                    "dtype",
                    "Number format of the weights: fp16 makes the smallest file that every program reads.",
                    options=list(DTYPES),
                    default=AS_IT_IS,
                ),
                field(
                    io.Int,
                    "rank",
                    "Shrinks the LoRA to this rank and tells how much is lost. 0 keeps it as it is.",
                    default=0,
                    min=0,
                    max=1024,
                ),
                field(io.String, "title", "The title that model browsers show. Empty keeps what is there.", default=""),
                field(io.String, "author", "Who made it. Empty keeps what is there.", default="", advanced=True),
                field(
                    io.String,
                    "description",
                    "What it does and how to use it. Empty keeps what is there.",
                    default="",
                    multiline=True,
                    advanced=True,
                ),
                field(io.String, "trigger_words", "The words that call it up, separated by commas. Empty keeps what is there.", default=""),
                field(io.String, "tags", "Words to find it by, separated by commas. Empty keeps what is there.", default="", advanced=True),
                field(
                    io.String,
                    "licence",
                    "Under which licence others may use it. Empty keeps what is there.",
                    default="",
                    advanced=True,
                ),
                field(LORA, "lora", "A LoRA fresh from Train LoRA. It wins over the list.", optional=True),
                field(io.Image, "thumbnail", "A picture for model browsers to show.", optional=True),
                field(
                    io.Model,
                    "model",
                    "For DoRA in the comfyui format: the model that the LoRA will be used on. ComfyUI's own loader then gives "
                    "exactly what was trained, on this model.",
                    optional=True,
                ),
                field(io.Clip, "clip", "The text encoder that belongs to the model input, if the DoRA changes it too.", optional=True),
            ],
            [
                result(LORA, "lora", "The exported LoRA."),
                result(io.String, "report", "What was written, and what could not be carried over exactly."),
            ],
            search=["save lora", "convert lora", "kohya", "diffusers", "resize lora", "lora metadata"],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str = FROM_INPUT, file_name: str | None = None, **_: Any) -> str:
        """Changes when the chosen file is replaced, and when the exported one is deleted."""
        return state_of(lora_name) + written_files.fingerprint(_NODE, file_name)

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
    ) -> io.NodeOutput:
        """Write the file."""
        texts = {"title": title, "author": author, "description": description, "trigger": trigger_words, "tags": tags, "licence": licence}
        with canvas_errors():
            allow(thumbnail=thumbnail, model=model, clip=clip)
            source = chosen_lora(lora_name, lora)
            name = safe_name(file_name.strip().removesuffix(".safetensors") or source.stem)
            target = exports_dir() / f"{name}.safetensors"
            if target.exists() and target.resolve() == source.resolve():
                raise UserError("The export would replace the file that it is made from.", "Choose another file name.", kind="lora")
            changes = {key: text.strip() for key, text in texts.items() if text.strip()}
            report = export(source, target, format, dtype, rank, changes, thumbnail, model, clip)
            written_files.record(_NODE, file_name, target)
            info = inspect(target)
            handle = Lora(str(target), sha256_file(target), tuple(info.trigger_words))
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
) -> str:
    """Convert ``source`` into ``target`` and say what was done. Imported late: it reads files with torch."""
    from dataclasses import replace

    from ..trainer import lorafile
    from ..trainer.lorafile.thumbnail import to_data_url

    weights = lorafile.read_lora(source)
    said: list[str] = []
    if rank:
        weights, loss = lorafile.reduce_rank(weights, rank)
        said.append(str(loss))
    described = dict(changes)
    if thumbnail is not None:
        described["thumbnail"] = to_data_url(to_pil(thumbnail[0]))
    if described:
        weights = replace(weights, metadata=lorafile.edited(weights.metadata, described))
    if model is not None:
        weights, told = _for_model(weights, format, model, clip)
        said.append(told)
    converted = lorafile.convert(weights, format, None if dtype == AS_IT_IS else lorafile.DTYPES[dtype])
    lorafile.write_lora(target, converted)
    info = lorafile.inspect_lora(target)
    said += [
        f"{target.name}: {info.format}, rank {info.rank}, {info.dtype}, {plural(sum(info.targets.values()), 'layer')}",
        str(target),
        *(Message("Note: ", note) for note in converted.notes),
        *(f"Warning: {problem}" for problem in weights.problems),
    ]
    return on_canvas(joined("\n", said))


def _for_model(weights: Any, format: str, model: Any, clip: Any) -> tuple[Any, str]:
    """``weights`` whose DoRA is for ComfyUI's own loader and ``model``, and a line that says so or why it is not."""
    from ..trainer.lorafile.comfyui_dora import for_comfyui, has_output_magnitudes
    from .shared.loras.original_weights import original_weights

    if format != "comfyui":
        return weights, "The model input was not used: it is for the comfyui format."
    if not any(has_output_magnitudes(module) for module in weights):
        return weights, "The model input was not used: the LoRA is no DoRA."
    changed = for_comfyui(weights, original_weights(weights, model, clip), "the model that it was exported with")
    return changed, "Its DoRA is for ComfyUI's own loader and the connected model. Keep the original for every other use."
