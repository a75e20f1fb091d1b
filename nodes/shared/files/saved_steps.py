"""The LoRA files that a training run saved before its end: find them, label them, and select those that a node needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ....trainer.core.errors import UserError
from ....trainer.core.files.paths import resolve_below
from ....trainer.core.files.reading import file_stamp
from ....trainer.runs import events
from ....trainer.runs.event_log import read_events_of
from ....trainer.runs.publish import put, remove_left_over
from ....trainer.runs.states import state_folders
from ..inputs.prompts import numbers
from ..inputs.socket_types import LORA_INPUT, lora_from_socket
from .folders import runs_dir


def saved_loras(run: Path) -> dict[int, Path]:
    """The LoRA files that a run saved, by step."""
    found: dict[int, Path] = {}
    for folder in state_folders(run / "checkpoints"):
        number = folder.name.removeprefix("step-")
        files = sorted(folder.glob(f"*-{number}.safetensors"))
        if number.isdigit() and files:
            found[int(number)] = files[0]
    return dict(sorted(found.items()))


def run_names() -> list[str]:
    """The entries of a menu of runs: folders that hold a saved LoRA."""
    return sorted(folder.name for folder in runs_dir().glob("*-*") if saved_loras(folder))


def run_state(name: str) -> str:
    """A text that changes when the run of a menu entry saves another LoRA; empty for a run from the socket."""
    if name == LORA_INPUT:
        return ""
    return " ".join(f"{path.name} {file_stamp(path)}" for path in saved_loras(_run_path(name)).values())


def chosen_run(name: str, connected: Any) -> Path:
    """The folder of the run on the LORA socket, or of the menu entry when nothing is connected. Raises UserError when there is neither."""
    if connected is not None:
        folder = lora_from_socket(connected).run_dir
        if not folder:
            raise UserError("The connected LoRA was not trained here.", "Connect the lora output of Train LoRA.", kind="lora")
        return Path(folder)
    if name == LORA_INPUT:
        raise UserError("No training run was chosen.", "Choose one from the list, or connect the lora output of Train LoRA.", kind="lora")
    return _run_path(name)


def select_steps(saved: dict[int, Path], steps: str) -> dict[int, Path]:
    """The saved LoRA files at ``steps`` (numbers separated by commas), or all. Raises UserError for a step that was not saved."""
    if not saved:
        action = "Set “validation prompts” or “save every (steps)” of Train LoRA, and train again."
        raise UserError("This run saved no LoRA before its end.", action, kind="lora")
    if not steps.strip():
        return saved
    asked = [int(number) for number in numbers(steps, what="saved steps", low=0, high=100_000_000)]
    missing = [str(step) for step in asked if step not in saved]
    if missing:
        raise UserError(f"Nothing was saved at step {', '.join(missing)}.", f"Saved steps are: {', '.join(map(str, saved))}.", kind="lora")
    return {step: saved[step] for step in asked}


def labels(run: Path, steps: list[int]) -> list[str]:
    """A label such as ``epoch 2 · step 600`` for each step, without the epoch when the run's log does not state its length."""
    plans = read_events_of(run / "events.jsonl", events.Plan)
    if not plans or plans[-1].steps_per_epoch < 1:
        return [f"step {step}" for step in steps]
    return [f"epoch {step / plans[-1].steps_per_epoch:.3g} · step {step}" for step in steps]


def _run_path(name: str) -> Path:
    return resolve_below(name, [runs_dir()], what="training run")


def copy_lora(source: Path, target: Path) -> Path:
    """Copy a LoRA to ``target`` and return that path. Raises UserError rather than replace another LoRA."""
    remove_left_over(target.parent)
    if put(source.read_bytes(), [target]) is None:
        raise UserError(f"models/loras already holds another {target.name}.", "Choose another name.", kind="output")
    return target
