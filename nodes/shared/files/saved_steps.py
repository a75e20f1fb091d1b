"""The LoRA files that a training run kept on its way: which there are, by what name people know them, and which were asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ....trainer.core.errors import UserError
from ....trainer.core.files.paths import resolve_below
from ....trainer.core.files.reading import file_stamp
from ....trainer.runs import events
from ....trainer.runs.run_folder import read_events_of
from ....trainer.runs.states import state_folders
from ..inputs.prompts import numbers
from ..inputs.socket_types import as_lora
from .folders import runs_dir

FROM_INPUT = "(lora input)"


def saved_loras(run: Path) -> dict[int, Path]:
    """The LoRA files that a run kept beside its states, by step."""
    found: dict[int, Path] = {}
    for folder in state_folders(run / "checkpoints"):
        number = folder.name.removeprefix("step-")
        files = sorted(folder.glob(f"*-{number}.safetensors"))
        if number.isdigit() and files:
            found[int(number)] = files[0]
    return dict(sorted(found.items()))


def run_names() -> list[str]:
    """What a menu of runs offers: folders that hold a saved LoRA."""
    return sorted(folder.name for folder in runs_dir().glob("*-*") if saved_loras(folder))


def run_state(name: str) -> str:
    """Changes when a run of the menu has saved more; empty for a run that comes through the socket."""
    if name == FROM_INPUT:
        return ""
    return " ".join(f"{path.name} {file_stamp(path)}" for path in saved_loras(_run_path(name)).values())


def chosen_run(name: str, connected: Any) -> Path:
    """The folder of a LORA socket's run, or of a menu entry when nothing is connected. Raises UserError when there is neither."""
    if connected is not None:
        folder = as_lora(connected).run_dir
        if not folder:
            raise UserError("The connected LoRA was not trained here.", "Connect the lora output of Train LoRA.", kind="lora")
        return Path(folder)
    if name == FROM_INPUT:
        raise UserError("No training run was chosen.", "Choose one from the list, or connect the lora output of Train LoRA.", kind="lora")
    return _run_path(name)


def wanted(saved: dict[int, Path], steps: str) -> dict[int, Path]:
    """The saved LoRA files of the ``steps`` (numbers with commas), all when none are named. Raises UserError for what was not saved."""
    if not saved:
        raise UserError("This run has saved no LoRA on its way.", "Set checkpoint_every of Train LoRA, and train again.", kind="lora")
    if not steps.strip():
        return saved
    asked = [int(number) for number in numbers(steps, what="saved_steps", low=0, high=100_000_000)]
    missing = [str(step) for step in asked if step not in saved]
    if missing:
        raise UserError(f"Nothing was saved at step {', '.join(missing)}.", f"Saved steps are: {', '.join(map(str, saved))}.", kind="lora")
    return {step: saved[step] for step in asked}


def labels(run: Path, steps: list[int]) -> list[str]:
    """``epoch 2 · step 600`` for each step; only the step where the run's log does not tell how long an epoch is."""
    plans = read_events_of(run / "events.jsonl", events.Plan)
    if not plans or plans[-1].steps_per_epoch < 1:
        return [f"step {step}" for step in steps]
    return [f"epoch {step / plans[-1].steps_per_epoch:.3g} · step {step}" for step in steps]


def _run_path(name: str) -> Path:
    return resolve_below(name, [runs_dir()], what="training run")
