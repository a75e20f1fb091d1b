"""Pick Epoch: the LoRA as it was at one saved step of a run, for Load LoRA, and to keep if it is the one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..trainer.core.errors import UserError
from ..trainer.core.files.paths import safe_name
from ..trainer.core.files.reading import sha256_file
from ..trainer.runs.publish import put, remove_left_over
from ..trainer.runs.saved_lora import require_undamaged
from .load_lora import inspect
from .shared import written_files
from .shared.browser import report_new_lora, show_text
from .shared.failures import canvas_errors
from .shared.files.folders import loras_dir
from .shared.files.saved_steps import FROM_INPUT, chosen_run, labels, run_names, run_state, saved_loras, wanted
from .shared.inputs.socket_types import LORA, Lora
from .shared.schema import field, result, schema

_NODE = "PickEpoch"


class PickEpoch(io.ComfyNode):
    """Schema and call of Pick Epoch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help."""
        return schema(
            _NODE,
            "Pick Epoch",
            "Takes the LoRA as it was at one saved step of a training run, as Epoch Compare shows them, "
            "and puts it among your LoRAs if you give it a name.",
            [
                field(
                    io.Combo,
                    "run",
                    "The training run to take from. Not used while something is connected to the lora input.",
                    options=[FROM_INPUT, *run_names()],
                    default=FROM_INPUT,
                ),
                field(
                    io.Int,
                    "step",
                    "The saved step to take: the number in the labels of Epoch Compare. 0 takes the last one.",
                    default=0,
                    min=0,
                    max=100_000_000,
                ),
                field(
                    io.String,
                    "save_as",
                    "Also puts it into models/loras under this name, for every other graph. Empty only hands it on.",
                    default="",
                ),
                field(LORA, "lora", "A LoRA fresh from Train LoRA: its run is taken. It wins over the list.", optional=True),
            ],
            [
                result(LORA, "lora", "The picked LoRA, for Load LoRA and Export LoRA."),
                result(io.String, "report", "Which step was taken, and which others were saved."),
            ],
            search=["choose checkpoint", "best epoch", "early stopping"],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, run: str = FROM_INPUT, save_as: str | None = None, **_: Any) -> str:
        """Changes when the chosen run has saved more, and when the file that was saved is deleted."""
        return run_state(run) + written_files.fingerprint(_NODE, save_as)

    @classmethod
    def execute(cls, run: str, step: int, save_as: str, lora: Any = None) -> io.NodeOutput:
        """Take the file of the step."""
        with canvas_errors():
            folder = chosen_run(run, lora)
            saved = saved_loras(folder)
            number = step or max(wanted(saved, ""))
            path = wanted(saved, str(number))[number]
            require_undamaged(path)
            lines = [f"{label} (picked)" if at == number else label for at, label in zip(saved, labels(folder, list(saved)), strict=True)]
            if save_as.strip():
                path = keep(path, loras_dir() / f"{safe_name(save_as.strip().removesuffix('.safetensors'))}.safetensors")
                written_files.record(_NODE, save_as, path)
                report_new_lora()
                lines.append(f"saved as {path.name}")
            report = "\n".join(lines)
            show_text(cls.hidden.unique_id, report)
            return io.NodeOutput(Lora(str(path), sha256_file(path), tuple(inspect(path).trigger_words), str(folder)), report)


def keep(source: Path, target: Path) -> Path:
    """Copy a LoRA to ``target`` and return that. Raises UserError instead of replacing another LoRA."""
    remove_left_over(target.parent)
    if put(source.read_bytes(), [target]) is None:
        raise UserError(f"models/loras already holds another {target.name}.", "Choose another name.", kind="output")
    return target
