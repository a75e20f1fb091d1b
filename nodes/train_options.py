"""Train Options: what Train LoRA can do beyond its own widgets, in one optional node."""

from __future__ import annotations

import json
from typing import Any, get_args

from comfy_api.latest import io

from ..trainer import config as choices
from .schema import field, result, schema
from .types import TRAIN_OPTIONS, TrainOptions

# widget -> section and key of the run configuration
PLACES = {
    "optimizer": ("optimizer", "name"),
    "weight_decay": ("optimizer", "weight_decay"),
    "max_grad_norm": ("optimizer", "max_grad_norm"),
    "lora_plus_ratio": ("optimizer", "lora_plus_ratio"),
    "min_snr_gamma": ("objective", "min_snr_gamma"),
    "loss": ("objective", "loss"),
    "noise_offset": ("objective", "noise_offset"),
    "multires_iterations": ("objective", "multires_iterations"),
    "input_perturbation": ("objective", "input_perturbation"),
    "timestep_min": ("objective", "timestep_min"),
    "timestep_max": ("objective", "timestep_max"),
    "timestep_sampling": ("objective", "timestep_sampling"),
    "keep_checkpoints": ("training", "keep_checkpoints"),
    "validation_negative": ("sample", "negative"),
    "validation_seed": ("sample", "seed"),
    "validation_width": ("sample", "width"),
    "validation_height": ("sample", "height"),
    "conv_rank": ("network", "conv_rank"),
    "conv_alpha": ("network", "conv_alpha"),
    "dropout": ("network", "dropout"),
    "rslora": ("network", "rslora"),
    "dora": ("network", "dora"),
    "prediction": ("objective", "prediction"),
    "zero_terminal_snr": ("objective", "zero_terminal_snr"),
}


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
                field(
                    io.Combo,
                    "optimizer",
                    "How the LoRA follows its errors. adamw suits everybody; adamw8bit needs less memory; prodigy finds its own pace.",
                    options=list(get_args(choices.Optimizer)),
                    default="adamw",
                ),
                _float("weight_decay", "Pulls weights gently towards zero, against overfitting.", 0.01, 1.0, 0.001),
                _float("max_grad_norm", "Cuts off steps that are too large. 0 switches that off.", 1.0, 100.0, 0.1),
                field(
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
                field(
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
                field(
                    io.Int,
                    "timestep_max",
                    "The most noise that is trained: 1000 is pure noise. Lower it to learn details only.",
                    default=1000,
                    min=1,
                    max=1000,
                ),
                field(
                    io.Combo,
                    "timestep_sampling",
                    "Whether all noise levels are trained equally often, or the middle ones more.",
                    options=list(get_args(choices.TimestepSampling)),
                    default="uniform",
                ),
                _int("keep_checkpoints", "How many saved states are kept to go on from. 0 keeps all.", 0, 1000),
                field(io.String, "validation_negative", "What should not be in the test pictures.", default="", multiline=True),
                field(
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
                # added later: at the end, and optional, so that graphs saved before them still load and run
                field(
                    io.Int,
                    "conv_rank",
                    "Rank of the 3x3 convolutions, with targets all-linear+conv. 0 takes the rank of Train LoRA.",
                    default=0,
                    min=0,
                    max=1024,
                    optional=True,
                ),
                field(
                    io.Float,
                    "conv_alpha",
                    "Alpha of those convolutions. 0 takes the alpha of Train LoRA.",
                    default=0.0,
                    min=0.0,
                    max=4096.0,
                    step=0.5,
                    optional=True,
                ),
                field(
                    io.Float,
                    "dropout",
                    "Hides this share of the inputs in each step, so that few pictures are not learned by heart; try 0.1. 0 is off.",
                    default=0.0,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    round=False,
                    optional=True,
                ),
                field(
                    io.Boolean,
                    "rslora",
                    "Scales by the square root of the rank, so that high ranks go on learning.",
                    default=False,
                    optional=True,
                ),
                field(
                    io.Boolean,
                    "dora",
                    "Learns direction and strength of each layer apart: closer to full training, and slower.",
                    default=False,
                    optional=True,
                ),
                field(
                    io.Combo,
                    "prediction",
                    "What the checkpoint was made to predict. auto reads it from the file; "
                    "change it only for a v-prediction model that looks grey or burnt.",
                    options=list(get_args(choices.PredictionChoice)),
                    default="auto",
                    optional=True,
                ),
                field(
                    io.Combo,
                    "zero_terminal_snr",
                    "Whether training starts from pure noise, as NoobAI's v-prediction models do. auto reads it from the file.",
                    options=list(get_args(choices.ZeroTerminal)),
                    default="auto",
                    optional=True,
                ),
            ],
            [result(TRAIN_OPTIONS, "options", "For the options input of Train LoRA.")],
            search=["optimizer", "min snr", "noise offset", "huber", "timesteps", "prodigy", "dora", "locon", "v-prediction"],
        )

    @classmethod
    def execute(cls, **widgets: Any) -> io.NodeOutput:
        """The options as plain data; Train LoRA validates them with its own."""
        sections: dict[str, dict[str, Any]] = {}
        for widget, (section, key) in PLACES.items():
            if widget in widgets:
                sections.setdefault(section, {})[key] = widgets[widget]
        return io.NodeOutput(TrainOptions(json.dumps(sections, sort_keys=True)))


def _float(id: str, tooltip: str, default: float, most: float, step: float) -> io.Input:
    return field(io.Float, id, tooltip, default=default, min=0.0, max=most, step=step, round=False)


def _int(id: str, tooltip: str, default: int, most: int, step: int = 1) -> io.Input:
    return field(io.Int, id, tooltip, default=default, min=0, max=most, step=step)
