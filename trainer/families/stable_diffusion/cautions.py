"""Warnings about checkpoints that can be trained but are probably a bad choice."""

from __future__ import annotations

import re

from ...core.messages import Message, Setting
from ..checkpoints.base_checkpoint import BaseCheckpoint
from ..checkpoints.diffusers_folder import read_json, read_scheduler
from ..interface import Family
from ..prediction import FLOW

_FEW_STEPS = re.compile(r"(?<![a-z])(turbo|lightning|lcm|hyper[-_ ]?sdxl|hyper[-_ ]?sd|dmd2?|tcd|pcm)(?![a-z])", re.IGNORECASE)
_FEW_STEP_SCHEDULERS = ("LCMScheduler", "TCDScheduler")
_NAMED_VELOCITY = re.compile(r"v[-_ ]?pred", re.IGNORECASE)
_NAMED_EQ_VAE = re.compile(r"eq[-_ ]?vae", re.IGNORECASE)
_NAMED_FLOW = re.compile(r"rectified|(?<![a-z])(rf|rflow|flow)(?![a-z])", re.IGNORECASE)


def cautions(checkpoint: BaseCheckpoint, family: Family, prediction: str = "auto") -> list[str]:
    """Sentences for the user about a model that is distilled for few steps, whose latents may have another scale, or whose name contradicts
    how it will be trained where the setting ``prediction`` is auto."""
    name, warnings = checkpoint.name, []
    names = f"{checkpoint.path.stem} {checkpoint.metadata.get('modelspec.title', '')}"
    if why := _why_distilled(checkpoint, names):
        warnings.append(
            f"{name} seems to be distilled for few steps ({why}). Training weakens the distillation, and images with the usual number of "
            "steps and guidance look burnt. Train on the model that it was made from, and use the LoRA with both."
        )
    if family.name == "sdxl" and _NAMED_EQ_VAE.search(names):
        warnings.append(
            f"The name of {name} suggests an EQ-VAE. Latents have SDXL's scale ({family.latents.scaling_factor:g}, no shift), with which "
            "ComfyUI samples, too. A model that was trained with another scale or with a shift is not supported."
        )
    if prediction != "auto" or family.states_prediction(checkpoint):
        return warnings
    if _NAMED_FLOW.search(names):
        warnings.append(_contradicted(name, "a rectified flow", FLOW))
    elif _NAMED_VELOCITY.search(names):
        warnings.append(_contradicted(name, "v-prediction", "v-prediction"))
    return warnings


def _contradicted(name: str, suggested: str, value: str) -> Message:
    return Message(
        f"The name of {name} suggests {suggested}, but the file does not state what it predicts, so ",
        Setting("objective.prediction"),
        f' decides: "auto" means epsilon. Set it to "{value}" if the name is right.',
    )


def _why_distilled(checkpoint: BaseCheckpoint, names: str) -> str:
    if match := _FEW_STEPS.search(names):
        return f"its name contains {match[0]}"
    scheduler = str(read_scheduler(checkpoint.path).get("_class_name", "")) if checkpoint.kind == "folder" else ""
    if scheduler in _FEW_STEP_SCHEDULERS:
        return f"its scheduler is {scheduler}"
    return "its UNet takes the guidance scale as an input, as LCM's does" if _embeds_guidance(checkpoint) else ""


def _embeds_guidance(checkpoint: BaseCheckpoint) -> bool:
    if checkpoint.kind == "folder":
        return bool(read_json(checkpoint.path / "unet" / "config.json").get("time_cond_proj_dim"))
    return "model.diffusion_model.time_embed.cond_proj.weight" in checkpoint.shapes
