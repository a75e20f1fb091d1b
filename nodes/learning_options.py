"""Learning Options: the fine print of optimizer, schedule, loss and noise."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..trainer import config as choices
from . import places
from .failures import readable
from .options import earlier, extended
from .schema import result, schema, setting
from .types import TRAIN_OPTIONS


class LearningOptionsNode(io.ComfyNode):
    """Schema and call of Learning Options."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help; each default is the trainer's own."""
        return schema(
            "LearningOptions",
            "Learning Options",
            "The fine print of optimizer, schedule, loss and noise. Connect it to Train LoRA, or to another options node.",
            [
                _float(
                    "beta1", "How long the direction of learning is remembered. 0.9 suits every optimizer here.", 0.9, 0.0, 0.9999, 0.001
                ),
                _float(
                    "beta2",
                    "How long the size of past steps is remembered. 0.999 is usual; lower it for short runs.",
                    0.999,
                    0.0,
                    0.9999,
                    0.001,
                ),
                _float("epsilon", "A tiny number that keeps the optimizer from dividing by zero.", 1e-8, 1e-12, 1.0, 1e-9),
                setting(
                    io.Int,
                    "restarts",
                    "How many times the learning rate falls and jumps up again, with the schedule cosine_with_restarts.",
                    default=1,
                    min=1,
                    max=1000,
                ),
                _float(
                    "power", "How steeply the learning rate falls with the schedule polynomial. 1 is a straight line.", 1.0, 0.01, 10.0, 0.1
                ),
                setting(
                    io.Boolean,
                    "debiased",
                    "Another way to even out noise levels: use it instead of min_snr_gamma, not together with it.",
                    default=False,
                ),
                _float("huber_c", "Where the losses huber and smooth_l1 begin to forgive. Smaller forgives more.", 0.1, 0.0001, 10.0, 0.01),
                setting(
                    io.Combo,
                    "huber_schedule",
                    "Whether those losses forgive more where there is more noise (snr, exponential), or the same everywhere (constant).",
                    options=list(get_args(choices.HuberSchedule)),
                    default="snr",
                ),
                _float("multires_discount", "How much weaker each coarser noise of multires_iterations is.", 0.3, 0.0, 1.0, 0.05),
                _float(
                    "logit_mean",
                    "With timestep_sampling logit-normal: above 0 trains composition more, below 0 details.",
                    0.0,
                    -10.0,
                    10.0,
                    0.1,
                ),
                _float(
                    "logit_std",
                    "With timestep_sampling logit-normal: how far it spreads from the middle. Larger is more even.",
                    1.0,
                    0.01,
                    10.0,
                    0.1,
                ),
                setting(
                    io.String,
                    "step_rules",
                    "For the schedule piecewise_constant: factor of the learning rate up to a step, and the last factor, "
                    "as in 1:100,0.1:200,0.01.",
                    default="",
                ),
                _float(
                    "ema_decay",
                    "Averages the LoRA over its last steps, for a calmer result; 0.99 to 0.999 in long runs. 0 is off.",
                    0.0,
                    0.0,
                    0.9999,
                    0.001,
                ),
                earlier(),
            ],
            [result(TRAIN_OPTIONS, "options", "For the options input of Train LoRA.")],
            search=["betas", "optimizer arguments", "huber", "debiased", "restarts"],
        )

    @classmethod
    def execute(cls, options: Any = None, **widgets: Any) -> io.NodeOutput:
        """The options as plain data."""
        with readable():
            return extended(options, places.sections(places.LEARNING_OPTIONS, widgets))


def _float(id: str, tooltip: str, default: float, least: float, most: float, step: float) -> io.Input:
    return setting(io.Float, id, tooltip, default=default, min=least, max=most, step=step, round=False)
