"""``[output]``: where results go."""

from __future__ import annotations

from pydantic import field_validator

from ..setting import setting
from .section import Section


class OutputSection(Section):
    """Where results go. Not part of the run's identity: moving a folder does not train again."""

    runs: str = setting(
        "runs",
        "Folder for the run folders.",
        details="Train LoRA sets it to `output/animelora/runs`. In a file, a relative path starts from the file's folder.",
        why="Beside the configuration file, where it is easy to find.",
    )
    publish: str = setting(
        "",
        "Folder that receives a copy of the finished LoRA, such as ComfyUI's models/loras.",
        why="Without it, the LoRA stays in the run folder.",
    )
    tensorboard: bool = setting(
        True,
        "Writes a TensorBoard log to the run folder.",
        details="Losses, learning rate, norms and validation images, for `tensorboard --logdir`.",
        why="It costs next to nothing.",
    )
    wandb: bool = setting(
        False,
        "Logs the run to Weights & Biases.",
        details="Its package must be installed. Without an account on this machine, or with `WANDB_MODE=offline`, the log stays in the run "
        "folder (`wandb/`) until `wandb sync`. The configuration is sent without paths.",
        why="It sends data to a service.",
    )
    prune_days: int = setting(
        30,
        "Deletes saved states of runs that finished more than this many days ago; LoRA files always stay. 0 keeps everything.",
        details="Runs after each training. Cached latents and prompts of that age are deleted too; unfinished runs are left alone.",
        why="Long enough to return to a run, short enough that disks do not fill up.",
        ge=0,
        le=36_500,
    )

    @field_validator("runs", "publish")
    @classmethod
    def _is_a_path(cls, value: str) -> str:
        if "\x00" in value:
            raise ValueError("a path cannot contain a NUL character")
        return value
