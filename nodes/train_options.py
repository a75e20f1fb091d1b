"""Train Options: optimizer, loss, noise and more settings for Train LoRA."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .shared.failures import canvas_errors
from .shared.files.folders import text_encoder_names, text_encoder_path, vae_names, vae_path
from .shared.inputs.socket_types import TRAIN_OPTIONS
from .shared.options import earlier, extended_options
from .shared.schema import inputs, result, schema
from .shared.widgets.training_widgets import OWN_TEXT_ENCODER, OWN_VAE, TRAIN_OPTIONS_WIDGETS


class TrainOptionsNode(io.ComfyNode):
    """Schema and call of Train Options."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help."""
        return schema(
            TRAIN_OPTIONS_WIDGETS.node,
            TRAIN_OPTIONS_WIDGETS.title,
            "Optimizer, noise and loss settings that you may know from other trainers. Connect it to Train LoRA.",
            inputs(
                TRAIN_OPTIONS_WIDGETS,
                options=earlier(),
                vae=[OWN_VAE, *vae_names()],
                text_encoder=[OWN_TEXT_ENCODER, *text_encoder_names()],
            ),
            [result(TRAIN_OPTIONS, "options", "For the options input of Train LoRA.")],
            search=["optimizer", "min snr", "noise offset", "huber", "timesteps", "prodigy", "dora", "locon", "v-prediction"],
        )

    @classmethod
    def fingerprint_inputs(cls, vae: str = OWN_VAE, text_encoder: str = OWN_TEXT_ENCODER, **_: Any) -> str:
        """Changes when the VAE or the text encoder is replaced."""
        chosen = [] if vae == OWN_VAE else [vae_path(vae)]
        chosen += [] if text_encoder == OWN_TEXT_ENCODER else [text_encoder_path(text_encoder)]
        stats = [path.stat() for path in chosen]
        return " ".join(f"{status.st_size} {status.st_mtime_ns}" for status in stats)

    @classmethod
    def execute(cls, options: Any = None, **widgets: Any) -> io.NodeOutput:
        """The options as plain data; Train LoRA validates them."""
        with canvas_errors():
            if "vae" in widgets:
                widgets["vae"] = "" if widgets["vae"] == OWN_VAE else str(vae_path(widgets["vae"]))
            if "text_encoder" in widgets:
                chosen = widgets["text_encoder"]
                widgets["text_encoder"] = "" if chosen == OWN_TEXT_ENCODER else str(text_encoder_path(chosen))
            return extended_options(options, TRAIN_OPTIONS_WIDGETS.settings(widgets))
