"""Warn of a LoRA of a rectified flow on a model that is sampled as a diffusion, and the other way round."""

from __future__ import annotations

from typing import Any

import comfy.model_sampling

_OF_DIFFUSION = ("epsilon", "v")
_BOTH = ("sdxl",)  # families whose models may be either; files of others name a prediction by habit, kohya's of Anima say epsilon


def sampling_warning(name: str, info: Any, model: Any) -> str:
    """A sentence about the LoRA ``name`` and ``model`` if one is a rectified flow and the other is not; empty if they fit.

    ``info`` is the file's description. A node that changes the sampling after Load LoRA cannot be seen from here.
    """
    is_flow = isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST)
    if info.prediction == "flow" and not is_flow:
        return (
            f"{name} was trained for a rectified flow, but this model is sampled as a diffusion. Put ModelSamplingSD3 before Load LoRA, or "
            "ignore this if it comes after."
        )
    if info.family in _BOTH and info.prediction in _OF_DIFFUSION and is_flow:
        return f"{name} was trained for a diffusion ({info.prediction}), but this model is sampled as a rectified flow. Use another LoRA."
    return ""
