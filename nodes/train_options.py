"""Train Options: optimizer, loss, noise and more settings for Train LoRA."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .shared.failures import canvas_errors
from .shared.files.folders import vae_names, vae_path
from .shared.inputs.socket_types import TRAIN_OPTIONS
from .shared.options import earlier, extended
from .shared.schema import inputs, result, schema
from .shared.widgets.training_widgets import OWN_VAE, TRAIN_OPTIONS_WIDGETS


class TrainOptionsNode(io.ComfyNode):
    """Schema and call of Train Options."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help."""
        return schema(
            TRAIN_OPTIONS_WIDGETS.node,
            TRAIN_OPTIONS_WIDGETS.title,
            "Optimizer, noise and loss settings that you may know from other trainers. Connect it to Train LoRA.",
            inputs(TRAIN_OPTIONS_WIDGETS, options=earlier(), vae=[OWN_VAE, *vae_names()]),
            [result(TRAIN_OPTIONS, "options", "For the options input of Train LoRA.")],
            search=["optimizer", "min snr", "noise offset", "huber", "timesteps", "prodigy", "dora", "locon", "v-prediction"],
        )

    @classmethod
    def fingerprint_inputs(cls, vae: str = OWN_VAE, **_: Any) -> str:
        """Changes when the VAE is replaced."""
        if vae == OWN_VAE:
            return ""
        status = vae_path(vae).stat()
        return f"{status.st_size} {status.st_mtime_ns}"

    @classmethod
    def execute(cls, options: Any = None, **widgets: Any) -> io.NodeOutput:
        """The options as plain data; Train LoRA validates them."""
        with canvas_errors():
            if "vae" in widgets:
                widgets["vae"] = "" if widgets["vae"] == OWN_VAE else str(vae_path(widgets["vae"]))
            return extended(options, TRAIN_OPTIONS_WIDGETS.settings(widgets))
