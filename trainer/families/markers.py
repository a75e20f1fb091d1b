"""What a checkpoint says of itself beyond the shapes of its tensors: its training objective, and kinds of model that are bad bases.

Single files carry marker tensors and metadata, diffusers folders carry configurations. Whatever they say is either understood here, or
refused or warned of by name; nothing is taken for plain noise prediction because it was not recognised.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from .base import Prediction
from .checkpoint import BaseCheckpoint

EDM = "edm"
EDM_VELOCITY = "edm_v_prediction"
SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

# the ways in which files spell what they predict
_SPELLINGS = {
    "epsilon": ("epsilon", "eps", "e", "noise", "ddpm"),
    "v_prediction": ("v_prediction", "v", "v_pred", "vpred", "velocity"),
    "flow_prediction": ("flow_prediction", "flow", "rf", "rflow", "rectified_flow", "flow_matching"),
    "sample": ("sample", "x0"),
}
_KNOWN_AS = {
    EDM: "denoised images at EDM's noise levels, as Playground 2.5 does",
    EDM_VELOCITY: "the velocity at EDM's noise levels, as CosXL does",
    "flow_prediction": "the velocity of a rectified flow (flow_prediction)",
    "sample": "the denoised image (sample)",
}
_FLOW_SCHEDULER = re.compile(r"^FlowMatch")
_EDM_SCHEDULER = re.compile(r"^EDM")
_FEW_STEPS = re.compile(r"(?<![a-z])(turbo|lightning|lcm|hyper[-_ ]?sdxl|hyper[-_ ]?sd|dmd2?|tcd|pcm)(?![a-z])", re.IGNORECASE)
_FEW_STEP_SCHEDULERS = ("LCMScheduler", "TCDScheduler")
_SAYS_VELOCITY = re.compile(r"v[-_ ]?pred", re.IGNORECASE)
_SAYS_FLOW = re.compile(r"rectified|(?<![a-z])(rf|rflow|flow)(?![a-z])", re.IGNORECASE)
_CHANNELS = {
    5: "as depth models do",
    7: "as upscalers do",
    8: "as models do that edit an image by an instruction (pix2pix)",
    9: "as inpainting models do",
}


def prediction(checkpoint: BaseCheckpoint) -> Prediction:
    """What the checkpoint says that it predicts; epsilon where it says nothing. The kind may be one that cannot be trained.

    A single file says it by the tensors ``v_pred``, ``ztsnr`` and EDM's, which ComfyUI reads too, or by ``modelspec.prediction_type``; a
    folder by its scheduler's configuration.
    """
    if checkpoint.kind == "folder":
        config = read_scheduler(checkpoint)
        name = str(config.get("_class_name", ""))
        kind = _kind(str(config.get("prediction_type") or "epsilon"))
        if _EDM_SCHEDULER.match(name):
            kind = EDM_VELOCITY if kind == "v_prediction" else EDM
        elif _FLOW_SCHEDULER.match(name):
            kind = "flow_prediction"
        return Prediction(kind, bool(config.get("rescale_betas_zero_snr")))
    if "edm_mean" in checkpoint.shapes or "edm_std" in checkpoint.shapes:
        return Prediction(EDM)
    if "edm_vpred.sigma_max" in checkpoint.shapes:
        return Prediction(EDM_VELOCITY)
    stated = checkpoint.metadata.get("modelspec.prediction_type", "")
    kind = "v_prediction" if "v_pred" in checkpoint.shapes else _kind(stated or "epsilon")
    return Prediction(kind, "ztsnr" in checkpoint.shapes)


def states_prediction(checkpoint: BaseCheckpoint) -> bool:
    """Whether the checkpoint says anything about its prediction."""
    if checkpoint.kind == "folder":
        return "prediction_type" in read_scheduler(checkpoint)
    markers = ("v_pred", "edm_mean", "edm_std", "edm_vpred.sigma_max")
    return bool(checkpoint.metadata.get("modelspec.prediction_type")) or any(name in checkpoint.shapes for name in markers)


def require_supported(found: Prediction, name: str, *, chosen: bool = False) -> None:
    """Raise UserError unless a LoRA can be trained for what the checkpoint ``name`` predicts; ``chosen``: the user says what it is.

    EDM's noise levels are another matter than the prediction, which nothing chosen changes.
    """
    if found.is_supported or (chosen and found.kind not in (EDM, EDM_VELOCITY)):
        return
    said = _KNOWN_AS.get(found.kind, f"{found.kind!r}, which is not known here")
    hint = "Use a checkpoint that predicts the noise (epsilon) or the velocity (v-prediction)."
    if found.kind not in (EDM, EDM_VELOCITY):
        hint += " If it does and says so wrongly, set objective.prediction to which of the two it is."
    raise UserError(f"{name} predicts {said}. This version cannot train that.", hint, kind="checkpoint")


def require_known_parts(checkpoint: BaseCheckpoint) -> None:
    """Raise UserError for a checkpoint with more, or other, parts than this version trains: they would be left out in silence."""
    if reason := _folder_reason(checkpoint) if checkpoint.kind == "folder" else _file_reason(checkpoint):
        raise UserError(
            f"{checkpoint.name} is not a checkpoint that this version can train on: {reason}.",
            "Use a plain text-to-image checkpoint; most special models were made from one.",
            kind="checkpoint",
        )


def more_channels(channels: int) -> str:
    """What kind of model a UNet with so many input channels belongs to."""
    return f"its UNet takes {channels} channels where an image has 4" + (f", {_CHANNELS[channels]}" if channels in _CHANNELS else "")


def cautions(checkpoint: BaseCheckpoint) -> list[str]:
    """Sentences about what is trained all the same, but probably not what was meant."""
    name, found = checkpoint.name, []
    names = f"{checkpoint.path.stem} {checkpoint.metadata.get('modelspec.title', '')}"
    scheduler = str(read_scheduler(checkpoint).get("_class_name", "")) if checkpoint.kind == "folder" else ""
    why = ""
    if match := _FEW_STEPS.search(names):
        why = f"its name says {match[0]}"
    elif scheduler in _FEW_STEP_SCHEDULERS:
        why = f"its scheduler is {scheduler}"
    elif _embeds_guidance(checkpoint):
        why = "its UNet is given the guidance, as LCM's is"
    if why:
        found.append(
            f"{name} seems to be distilled for few steps ({why}). Training loosens that, and images at the usual steps and guidance look "
            "burnt. Train on the model that it was made from, and use the LoRA on both."
        )
    if not states_prediction(checkpoint):
        if _SAYS_FLOW.search(names):
            found.append(
                f"The name of {name} speaks of a rectified flow, but the file does not say what it predicts, so it is trained as epsilon. "
                "Rectified flows cannot be trained by this version."
            )
        elif _SAYS_VELOCITY.search(names):
            found.append(
                f"The name of {name} speaks of v-prediction, but the file does not say what it predicts, so objective.prediction decides: "
                '"auto" takes epsilon. Set it to "v-prediction" if the name is right.'
            )
    return found


def read_scheduler(checkpoint: BaseCheckpoint) -> dict[str, Any]:
    """A folder's ``scheduler_config.json``; empty without one."""
    path = checkpoint.path / "scheduler" / "scheduler_config.json"
    return read_json(path) if path.is_file() else {}


def read_json(path: Path) -> dict[str, Any]:
    """A configuration of a diffusers folder. Raises UserError when it cannot be read."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}", "Copy the model folder again.", kind="checkpoint") from error
    return data if isinstance(data, dict) else {}


def _kind(stated: str) -> str:
    spelled = stated.strip().lower().replace("-", "_").replace(" ", "_")
    return next((kind for kind, spellings in _SPELLINGS.items() if spelled in spellings), spelled[:40])


def _embeds_guidance(checkpoint: BaseCheckpoint) -> bool:
    if checkpoint.kind == "folder":
        return bool(read_json(checkpoint.path / "unet" / "config.json").get("time_cond_proj_dim"))
    return "model.diffusion_model.time_embed.cond_proj.weight" in checkpoint.shapes


def _file_reason(checkpoint: BaseCheckpoint) -> str:
    names = checkpoint.shapes
    if any(name.startswith("embedder.model.visual.") for name in names):
        return "it is an unCLIP model, which is guided by an image too"
    if any(name.startswith("model.diffusion_model.") and ".fuser." in name for name in names):
        return "it is a GLIGEN model, whose UNet has layers of its own for boxes"
    if any(name.startswith("model.diffusion_model.") and ("time_stack." in name or "motion_modules." in name) for name in names):
        return "it is a video model, whose UNet has layers of its own for time"
    return ""


def _folder_reason(checkpoint: BaseCheckpoint) -> str:
    unet = read_json(checkpoint.path / "unet" / "config.json")
    if (channels := unet.get("in_channels", 4)) != 4:
        return more_channels(int(channels))
    for key in ("class_embed_type", "num_class_embeds", "encoder_hid_dim", "encoder_hid_dim_type"):
        if unet.get(key) is not None:
            return f"its UNet has a further input (unet/config.json: {key} = {unet[key]!r})"
    scheduler = read_scheduler(checkpoint)
    # the noise levels of EDM and of flows are not made from betas; ``require_supported`` names those
    if not (_EDM_SCHEDULER.match(name := str(scheduler.get("_class_name", ""))) or _FLOW_SCHEDULER.match(name)):
        for key, value in SCHEDULE.items():
            if not _same(scheduler.get(key, value), value):
                return f"its noise schedule is another one (scheduler_config.json: {key} = {scheduler[key]!r}, where {value!r} is known)"
        if scheduler.get("trained_betas") is not None:
            return "its noise schedule is another one (scheduler_config.json: trained_betas)"
    vae = checkpoint.path / "vae" / "config.json"
    for key in ("latents_mean", "latents_std", "shift_factor"):
        if vae.is_file() and (read_json(vae).get(key)) is not None and prediction(checkpoint).is_supported:
            return f"its latents are shifted (vae/config.json: {key})"
    return ""


def _same(first: object, second: object) -> bool:
    if isinstance(first, int | float) and isinstance(second, int | float):
        return math.isclose(first, second, rel_tol=1e-6)
    return first == second
