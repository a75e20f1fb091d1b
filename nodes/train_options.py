"""Train Options: what Train LoRA can do beyond its own widgets, in one optional node."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..trainer.config import run_config as choices
from .shared import places
from .shared.failures import readable
from .shared.folders import vae_names, vae_path
from .shared.options import earlier, extended
from .shared.schema import number, result, schema, setting
from .shared.types import TRAIN_OPTIONS

OWN_VAE = "(the checkpoint's own)"


class TrainOptionsNode(io.ComfyNode):
    """Schema and call of Train Options."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help; each default is Train LoRA's own."""
        return schema(
            "TrainOptions",
            "Train Options",
            "Optimizer, noise and loss settings for people who know them from other trainers. Connect it to Train LoRA.",
            [
                setting(
                    io.Combo,
                    "optimizer",
                    "How the LoRA follows its errors. adamw suits everybody; adamw8bit needs less memory; prodigy finds its own pace.",
                    options=list(get_args(choices.Optimizer)),
                    default="adamw",
                ),
                number(
                    "weight_decay", "Pulls weights gently towards zero, against overfitting.", default=0.01, min=0.0, max=1.0, step=0.001
                ),
                number(
                    "max_grad_norm", "Cuts off steps that are too large. 0 switches that off.", default=1.0, min=0.0, max=100.0, step=0.1
                ),
                setting(
                    io.Float,
                    "lora_plus_ratio",
                    "LoRA+: the second half of each layer learns this many times faster. 1 is off.",
                    default=1.0,
                    min=1.0,
                    max=1000.0,
                    step=0.5,
                ),
                number(
                    "min_snr_gamma",
                    "Evens out how much each noise level counts; 5 often learns faster. 0 is off.",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.5,
                ),
                setting(
                    io.Combo,
                    "loss",
                    "How errors are counted. l2 is the standard; huber and smooth_l1 forgive odd pictures.",
                    options=list(get_args(choices.Loss)),
                    default="l2",
                ),
                number(
                    "noise_offset",
                    "Lets very dark and very bright pictures be learned; try 0.05. 0 is off.",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                ),
                setting(
                    io.Int,
                    "multires_iterations",
                    "Adds noise of several sizes, for richer light and dark; 6 is usual. 0 is off.",
                    default=0,
                    min=0,
                    max=16,
                ),
                number(
                    "input_perturbation",
                    "Shakes the input a little, for steadier results; try 0.1. 0 is off.",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                ),
                setting(io.Int, "timestep_min", "The least noise that is trained: 0 is a clean picture.", default=0, min=0, max=999),
                setting(
                    io.Int,
                    "timestep_max",
                    "The most noise that is trained: 1000 is pure noise. Lower it to learn details only.",
                    default=1000,
                    min=1,
                    max=1000,
                ),
                setting(
                    io.Combo,
                    "timestep_sampling",
                    "Whether all noise levels are trained equally often, or the middle ones more.",
                    options=list(get_args(choices.TimestepSampling)),
                    default="uniform",
                ),
                setting(
                    io.Int,
                    "keep_checkpoints",
                    "How many saved states are kept to go on from; all LoRA files stay. 0 keeps all.",
                    default=0,
                    min=0,
                    max=1000,
                ),
                setting(io.String, "validation_negative", "What should not be in the test pictures.", default="", multiline=True),
                setting(
                    io.Int,
                    "validation_seed",
                    "The dice of the test pictures.",
                    default=42,
                    min=0,
                    max=0xFFFF_FFFF,
                    control_after_generate=False,
                ),
                setting(
                    io.Int,
                    "validation_width",
                    "Width of the test pictures. 0 takes the dataset's resolution.",
                    default=0,
                    min=0,
                    max=4096,
                    step=8,
                ),
                setting(
                    io.Int,
                    "validation_height",
                    "Height of the test pictures. 0 takes the dataset's resolution.",
                    default=0,
                    min=0,
                    max=4096,
                    step=8,
                ),
                setting(
                    io.Int,
                    "conv_rank",
                    "Rank of the 3x3 convolutions, with targets all-linear+conv. 0 takes the rank of Train LoRA.",
                    default=0,
                    min=0,
                    max=1024,
                ),
                setting(
                    io.Float,
                    "conv_alpha",
                    "Alpha of those convolutions. 0 takes the alpha of Train LoRA.",
                    default=0.0,
                    min=0.0,
                    max=4096.0,
                    step=0.5,
                ),
                number(
                    "dropout",
                    "Hides this share of the inputs in each step, so that few pictures are not learned by heart; try 0.1. 0 is off.",
                    default=0.0,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                ),
                setting(
                    io.Boolean,
                    "rslora",
                    "Scales by the square root of the rank, so that high ranks go on learning.",
                    default=False,
                ),
                setting(
                    io.Boolean,
                    "dora",
                    "Learns direction and strength of each layer apart: closer to full training, and slower.",
                    default=False,
                ),
                setting(
                    io.Combo,
                    "prediction",
                    "What the checkpoint was made to predict. auto reads it from the file; "
                    "change it only for a v-prediction model that looks grey or burnt.",
                    options=list(get_args(choices.PredictionChoice)),
                    default="auto",
                ),
                setting(
                    io.Combo,
                    "zero_terminal_snr",
                    "Whether training starts from pure noise, as NoobAI's v-prediction models do. auto reads it from the file.",
                    options=list(get_args(choices.ZeroTerminal)),
                    default="auto",
                ),
                earlier(),
                # added later: at the end, so that graphs saved before them still load
                setting(
                    io.Boolean,
                    "balance_regularisation",
                    "Shows as many regularisation images as others in an epoch, as kohya's trainer does. "
                    "Off, each is shown as often as its folder says.",
                    default=True,
                ),
                setting(
                    io.Combo,
                    "vae",
                    "A VAE of your own in place of the checkpoint's, for a checkpoint without one or with a poor one.",
                    options=[OWN_VAE, *vae_names()],
                    default=OWN_VAE,
                ),
            ],
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
        """The options as plain data; Train LoRA validates them with its own."""
        with readable():
            if "vae" in widgets:
                widgets["vae"] = "" if widgets["vae"] == OWN_VAE else str(vae_path(widgets["vae"]))
            return extended(options, places.sections(places.TRAIN_OPTIONS, widgets))
