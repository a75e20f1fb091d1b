"""Train Options: what Train LoRA can do beyond its own widgets, in one optional node."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..trainer import config as choices
from . import places
from .failures import readable
from .options import earlier, extended
from .schema import result, schema, setting
from .types import TRAIN_OPTIONS


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
                _float("weight_decay", "Pulls weights gently towards zero, against overfitting.", 0.01, 1.0, 0.001),
                _float("max_grad_norm", "Cuts off steps that are too large. 0 switches that off.", 1.0, 100.0, 0.1),
                setting(
                    io.Float,
                    "lora_plus_ratio",
                    "LoRA+: the second half of each layer learns this many times faster. 1 is off.",
                    default=1.0,
                    min=1.0,
                    max=1000.0,
                    step=0.5,
                ),
                _float(
                    "min_snr_gamma",
                    "Evens out how much each noise level counts; 5 often learns faster. 0 is off.",
                    0.0,
                    1000.0,
                    0.5,
                ),
                setting(
                    io.Combo,
                    "loss",
                    "How errors are counted. l2 is the standard; huber and smooth_l1 forgive odd pictures.",
                    options=list(get_args(choices.Loss)),
                    default="l2",
                ),
                _float("noise_offset", "Lets very dark and very bright pictures be learned; try 0.05. 0 is off.", 0.0, 1.0, 0.01),
                _int("multires_iterations", "Adds noise of several sizes, for richer light and dark; 6 is usual. 0 is off.", 0, 16),
                _float("input_perturbation", "Shakes the input a little, for steadier results; try 0.1. 0 is off.", 0.0, 1.0, 0.01),
                _int("timestep_min", "The least noise that is trained: 0 is a clean picture.", 0, 999),
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
                _int("keep_checkpoints", "How many saved states are kept to go on from; all LoRA files stay. 0 keeps all.", 0, 1000),
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
                _int("validation_width", "Width of the test pictures. 0 takes the dataset's resolution.", 0, 4096, 8),
                _int("validation_height", "Height of the test pictures. 0 takes the dataset's resolution.", 0, 4096, 8),
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
                setting(
                    io.Float,
                    "dropout",
                    "Hides this share of the inputs in each step, so that few pictures are not learned by heart; try 0.1. 0 is off.",
                    default=0.0,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    round=False,
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
            ],
            [result(TRAIN_OPTIONS, "options", "For the options input of Train LoRA.")],
            search=["optimizer", "min snr", "noise offset", "huber", "timesteps", "prodigy", "dora", "locon", "v-prediction"],
        )

    @classmethod
    def execute(cls, options: Any = None, **widgets: Any) -> io.NodeOutput:
        """The options as plain data; Train LoRA validates them with its own."""
        with readable():
            return extended(options, places.sections(places.TRAIN_OPTIONS, widgets))


def _float(id: str, tooltip: str, default: float, most: float, step: float) -> io.Input:
    return setting(io.Float, id, tooltip, default=default, min=0.0, max=most, step=step, round=False)


def _int(id: str, tooltip: str, default: int, most: int, step: int = 1) -> io.Input:
    return setting(io.Int, id, tooltip, default=default, min=0, max=most, step=step)
