"""Pick Epoch: output the LoRA of one saved step of a run, and keep a copy under a name."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer.core.files.paths import safe_name
from ..trainer.core.files.reading import sha256_file
from ..trainer.runs.saved_lora import require_undamaged_lora
from .shared import written_files
from .shared.browser import report_new_lora, show_text
from .shared.failures import canvas_errors
from .shared.files.folders import loras_dir
from .shared.files.saved_steps import chosen_run, copy_lora, labels, run_names, run_state, saved_loras, select_steps
from .shared.inputs.socket_types import LORA, LORA_INPUT, LoraHandle, menu_or_socket
from .shared.loras.chosen_lora import inspect
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
            "Outputs the LoRA of one saved step of a training run, as shown by Epoch Compare, "
            "and adds it to your LoRAs if you enter a name.",
            [
                menu_or_socket("run", "The training run.", run_names()),
                field(
                    io.Int,
                    "step",
                    "The saved step, as in the labels of Epoch Compare. 0 means the last one.",
                    default=0,
                    min=0,
                    max=100_000_000,
                ),
                field(
                    io.String,
                    "save_as",
                    "Also copies the LoRA to models/loras under this name, for use in other workflows. If empty, it is only passed on.",
                    default="",
                ),
                field(LORA, "lora", "A LoRA from Train LoRA. Its run takes precedence over the list.", optional=True),
            ],
            [
                result(LORA, "lora", "The picked LoRA, for Load LoRA and Export LoRA."),
                result(io.String, "report", "The picked step, and the other saved steps."),
            ],
            search=["choose checkpoint", "best epoch", "early stopping"],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, run: str = LORA_INPUT, save_as: str | None = None, **_: Any) -> str:
        """Changes when the chosen run saves another LoRA or the copy is deleted."""
        return run_state(run) + written_files.files_fingerprint(_NODE, save_as)

    @classmethod
    def execute(cls, run: str, step: int, save_as: str, lora: Any = None) -> io.NodeOutput:
        """Pick the file of the step."""
        with canvas_errors():
            folder = chosen_run(run, lora)
            saved = saved_loras(folder)
            number = step or max(select_steps(saved, ""))
            path = select_steps(saved, str(number))[number]
            require_undamaged_lora(path)
            lines = [f"{label} (picked)" if at == number else label for at, label in zip(saved, labels(folder, list(saved)), strict=True)]
            if save_as.strip():
                path = copy_lora(path, loras_dir() / f"{safe_name(save_as.strip().removesuffix('.safetensors'))}.safetensors")
                written_files.record_file(_NODE, save_as, path)
                report_new_lora()
                lines.append(f"saved as {path.name}")
            report = "\n".join(lines)
            show_text(cls.hidden.unique_id, report)
            return io.NodeOutput(LoraHandle(str(path), sha256_file(path), tuple(inspect(path).trigger_words), str(folder)), report)
