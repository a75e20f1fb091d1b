"""``[optimizer]``: how the weights follow the gradients."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from ..setting import setting
from .section import Section

Optimizer = Literal["adamw", "adamw8bit", "adafactor", "lion", "prodigy", "schedule-free"]
Schedule = Literal[
    "constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "rex", "constant_with_warmup", "piecewise_constant"
]
SCHEDULES: tuple[str, ...] = get_args(Schedule)
LENGTH_DEPENDENT = ("linear", "cosine", "cosine_with_restarts", "polynomial", "rex")
"""Schedules whose rate at a step depends on the length of the run."""

_NUMBER = r"\d+(\.\d*)?([eE]-?\d+)?"
_LEAST_PRODIGY_LR = 0.1  # 1 is intended; with 1e-4 its estimate never leaves the initial 1e-6
_POLYNOMIAL_END = 1e-7  # diffusers' lr_end


class OptimizerSection(Section):
    """Optimizer, learning rates and schedule."""

    name: Optimizer = setting(
        "adamw",
        "The training algorithm. adamw suits everybody; adamw8bit needs less memory; prodigy finds its own learning rate.",
        details="`adamw8bit` (bitsandbytes) keeps its moments in a quarter of the memory, `adafactor` in almost none, `lion` in half; "
        "`schedule-free` needs no schedule. All but `adamw` and `adafactor` need a package of their own.",
        why="The field's standard; the others trade tuning for memory, or the other way round.",
    )
    lr: Annotated[float, Field(gt=0, le=10)] | Literal["auto"] = setting(
        1e-4,
        "How big the learning steps are. Lower it when results look burnt, raise it when the style does not show.",
        details='`"auto"`: chosen by family, rank and optimizer (1 for Prodigy, which multiplies its own; values below 0.1 would learn '
        "nothing and are refused).",
        why="The usual rate of a LoRA on SD 1.x.",
    )
    text_encoder_lr: Annotated[float, Field(gt=0, le=10)] | Literal["auto"] = setting(
        "auto",
        "Learning rate of the text encoder.",
        details='`"auto"`: half of `optimizer.lr`. Prodigy uses one rate for everything.',
        why="Text encoders forget sooner than the UNet (kohya's documentation has 5e-5 beside 1e-4).",
    )
    text_adapter_lr: Annotated[float, Field(ge=0, le=10)] = setting(
        0.0,
        "Learning rate of the text adapter, which turns the text encoder's output into what Anima reads. 0 leaves it as it is.",
        details="Above 0 the adapter gets a LoRA. Other models have no adapter. Prodigy uses one rate for everything.",
        why="The recipe of Anima's author: a small dataset would spoil what the adapter knows.",
    )
    weight_decay: float = setting(
        0.01, "Pulls the weights gently towards zero, against overfitting.", why="AdamW's own default.", ge=0, le=1
    )
    beta1: float = setting(
        0.9,
        "How strongly the optimizer averages past gradients. 0.9 suits every optimizer here.",
        why="AdamW's own default.",
        ge=0,
        lt=1,
    )
    beta2: float = setting(
        0.999,
        "How strongly the optimizer averages past squared gradients. 0.999 is usual; lower it for short runs.",
        why="AdamW's own default.",
        ge=0,
        lt=1,
    )
    eps: float = setting(1e-8, "A tiny number that keeps the optimizer from dividing by zero.", why="AdamW's own default.", gt=0, le=1)
    lora_plus_ratio: float = setting(
        1.0,
        "Trains the second matrix of each layer this many times faster (LoRA+). 1 is off.",
        why="Off; the paper recommends 16 with a lower learning rate.",
        ge=1,
        le=1000,
    )
    max_grad_norm: float = setting(
        1.0,
        "Limits the size of a single learning step, so that one odd image cannot derail the run. 0 is off.",
        details="Gradients with a larger norm are scaled down to it.",
        why="diffusers' and kohya's default.",
        ge=0,
    )
    schedule: Schedule = setting(
        "constant",
        "How the learning rate changes over the run.",
        details="All of diffusers' and `rex`. `constant` warms up too if `warmup_steps` is set; `linear` to `rex` end at zero.",
        why="The reference run uses it; cosine pays off in long runs.",
    )
    warmup_steps: int = setting(
        0,
        "Number of steps over which the learning rate rises from zero, for a gentle start.",
        why="A LoRA starts without any effect, so that it rarely needs a warm-up.",
        ge=0,
    )
    cycles: int = setting(
        1,
        "Number of times the learning rate falls and jumps up again, with schedule cosine_with_restarts.",
        why="diffusers' default.",
        ge=1,
        le=1000,
    )
    power: float = setting(
        1.0,
        "How steeply the learning rate falls, with schedule polynomial. 1 is a straight line.",
        why="diffusers' default.",
        gt=0,
        le=10,
    )
    step_rules: str = setting(
        "",
        "For schedule piecewise_constant: factors of the learning rate, each with the step at which it ends, such as 1:100,0.1:200,0.01.",
        details="In diffusers' notation; the example is the full rate for 100 steps, a tenth until step 200, then a hundredth. "
        "There is no warm-up.",
        why="Only this schedule needs them.",
    )

    @model_validator(mode="after")
    def _rules_for_pieces(self) -> OptimizerSection:
        if (self.schedule == "piecewise_constant") != bool(self.step_rules):
            raise ValueError("schedule piecewise_constant and step_rules need each other: set both or neither")
        if self.step_rules and not re.fullmatch(rf"({_NUMBER}:\d+,)*{_NUMBER}", self.step_rules):
            raise ValueError('step_rules are factors, each with the step at which it ends, and a last factor: "1:100,0.1:200,0.01"')
        ends = [int(rule.split(":")[1]) for rule in self.step_rules.split(",")[:-1]]
        if sorted(set(ends)) != ends:
            raise ValueError("the steps of step_rules must increase")
        return self

    @model_validator(mode="after")
    def _no_schedule_for_schedule_free(self) -> OptimizerSection:
        if self.name == "schedule-free" and self.schedule != "constant":
            raise ValueError("schedule-free replaces the schedule: use schedule constant")
        return self

    @model_validator(mode="before")
    @classmethod
    def _prodigys_own_rate(cls, data: Any) -> Any:
        return {"lr": "auto", **data} if isinstance(data, dict) and data.get("name") == "prodigy" else data

    @model_validator(mode="after")
    def _one_rate_for_prodigy(self) -> OptimizerSection:
        if self.name != "prodigy":
            return self
        own = 1.0 if self.lr == "auto" else self.lr
        if own < _LEAST_PRODIGY_LR:
            raise ValueError(
                f"prodigy finds its own rate and multiplies it by lr: with {own:g} it learns nothing. "
                'Set lr to 1, or to "auto" (0 on the canvas)'
            )
        if self.text_encoder_lr not in ("auto", own):
            raise ValueError('prodigy uses one rate for everything: leave text_encoder_lr at "auto"')
        if self.text_adapter_lr not in (0, own):
            raise ValueError(f"prodigy uses one rate for everything: set text_adapter_lr to 0 or {own:g}")
        if self.lora_plus_ratio != 1:
            raise ValueError("prodigy uses one rate for everything: leave lora_plus_ratio at 1")
        return self

    @model_validator(mode="after")
    def _rate_above_the_last(self) -> OptimizerSection:
        if self.schedule == "polynomial" and self.lr != "auto" and self.lr <= _POLYNOMIAL_END:
            raise ValueError(f"schedule polynomial ends at a rate of {_POLYNOMIAL_END:g}: lr must be above it")
        return self
