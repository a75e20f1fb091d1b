"""Warn of a LoRA of a rectified flow on a model that is sampled as a diffusion, and the other way round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.model_sampling

from ....trainer.families import FAMILIES

LATER = " Ignore this if such a node comes later."  # for nodes that apply LoRAs, which cannot see it from where they are
_OF_DIFFUSION = ("epsilon", "v")
# families whose models may be either; files of others name a prediction by habit, kohya's of Anima say epsilon
_BOTH = tuple(family.name for family in FAMILIES if family.flow is not None and family.beta_schedule is not None)
# families that need ModelSamplingAuraFlow, which scales the timestep by 1; ModelSamplingSD3 scales it by 1000
_UNSCALED = tuple(family.name for family in FAMILIES if family.flow is not None and family.flow.timestep_multiplier == 1)
_ATTACHMENT = "animelora_applied"


@dataclass(frozen=True)
class _Applied:
    """A LoRA that was applied to a model: its file, and what the file states."""

    name: str
    family: str
    prediction: str


def sampling_warning(name: str, info: Any, model: Any) -> str:
    """A sentence about the LoRA ``name`` and ``model`` if one is a rectified flow and the other is not; empty if they fit.

    ``info`` is the file's description. The sampling is the one that the model has here; a later node may change it.
    """
    is_flow = isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST)
    if info.prediction == "flow" and not is_flow:
        node = "ModelSamplingAuraFlow" if info.family in _UNSCALED else "ModelSamplingSD3"
        return f"{name} was trained for a rectified flow, but this model is sampled as a diffusion. Put {node} before this node."
    if info.family in _BOTH and info.prediction in _OF_DIFFUSION and is_flow:
        return f"{name} was trained for a diffusion ({info.prediction}), but this model is sampled as a rectified flow. Use another LoRA."
    return ""


def remember_lora(model: Any, name: str, info: Any) -> None:
    """Note on ``model`` that the LoRA ``name`` was applied to it, for ``applied_warnings``."""
    model.set_attachments(_ATTACHMENT, (*_applied(model), _Applied(name, info.family, info.prediction)))


def applied_warnings(model: Any) -> list[str]:
    """The warnings about the LoRAs that were applied to ``model`` by nodes of the pack."""
    warnings = (sampling_warning(lora.name, lora, model) for lora in _applied(model))
    return [warning for warning in dict.fromkeys(warnings) if warning]


def _applied(model: Any) -> tuple[_Applied, ...]:
    return model.get_attachment(_ATTACHMENT) or ()
