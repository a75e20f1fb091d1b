"""Learning Options: the fine print of optimizer, schedule, loss and noise."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..trainer.config import run_config as choices
from .shared import places
from .shared.failures import readable
from .shared.options import earlier, extended
from .shared.schema import number, result, schema, setting
from .shared.types import TRAIN_OPTIONS


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
                number(
                    "beta1",
                    "How long the direction of learning is remembered. 0.9 suits every optimizer here.",
                    default=0.9,
                    min=0.0,
                    max=0.9999,
                    step=0.001,
                ),
                number(
                    "beta2",
                    "How long the size of past steps is remembered. 0.999 is usual; lower it for short runs.",
                    default=0.999,
                    min=0.0,
                    max=0.9999,
                    step=0.001,
                ),
                number(
                    "epsilon", "A tiny number that keeps the optimizer from dividing by zero.", default=1e-8, min=1e-12, max=1.0, step=1e-9
                ),
                setting(
                    io.Int,
                    "restarts",
                    "How many times the learning rate falls and jumps up again, with the schedule cosine_with_restarts.",
                    default=1,
                    min=1,
                    max=1000,
                ),
                number(
                    "power",
                    "How steeply the learning rate falls with the schedule polynomial. 1 is a straight line.",
                    default=1.0,
                    min=0.01,
                    max=10.0,
                    step=0.1,
                ),
                setting(
                    io.Boolean,
                    "debiased",
                    "Another way to even out noise levels: use it instead of min_snr_gamma, not together with it.",
                    default=False,
                ),
                number(
                    "huber_c",
                    "Where the losses huber and smooth_l1 begin to forgive. Smaller forgives more.",
                    default=0.1,
                    min=0.0001,
                    max=10.0,
                    step=0.01,
                ),
                setting(
                    io.Combo,
                    "huber_schedule",
                    "Whether those losses forgive more where there is more noise (snr, exponential), or the same everywhere (constant).",
                    options=list(get_args(choices.HuberSchedule)),
                    default="snr",
                ),
                number(
                    "multires_discount",
                    "How much weaker each coarser noise of multires_iterations is.",
                    default=0.3,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                ),
                number(
                    "logit_mean",
                    "With timestep_sampling logit-normal: above 0 trains composition more, below 0 details.",
                    default=0.0,
                    min=-10.0,
                    max=10.0,
                    step=0.1,
                ),
                number(
                    "logit_std",
                    "With timestep_sampling logit-normal: how far it spreads from the middle. Larger is more even.",
                    default=1.0,
                    min=0.01,
                    max=10.0,
                    step=0.1,
                ),
                setting(
                    io.String,
                    "step_rules",
                    "For the schedule piecewise_constant: factor of the learning rate up to a step, and the last factor, "
                    "as in 1:100,0.1:200,0.01.",
                    default="",
                ),
                number(
                    "ema_decay",
                    "Averages the LoRA over its last steps, for a calmer result; 0.99 to 0.999 in long runs. 0 is off.",
                    default=0.0,
                    min=0.0,
                    max=0.9999,
                    step=0.001,
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
