"""Read from a Stable Diffusion checkpoint what it predicts.

Single files carry marker tensors and metadata, diffusers folders a scheduler configuration. A stated objective that is not understood is
passed on by name, and never taken for epsilon.
"""

from __future__ import annotations

import re

from ..checkpoints.base_checkpoint import BaseCheckpoint
from ..checkpoints.diffusers_folder import read_scheduler
from ..prediction import EDM, EDM_VELOCITY, FLOW, Prediction

# the spellings that are found in files
_SPELLINGS = {
    "epsilon": ("epsilon", "eps", "e", "noise", "ddpm"),
    "v_prediction": ("v_prediction", "v", "v_pred", "vpred", "velocity"),
    FLOW: ("flow", "flow_prediction", "rf", "rflow", "rectified_flow", "flow_matching"),
    "sample": ("sample", "x0"),
}
_FLOW_SCHEDULER = re.compile(r"^FlowMatch")
_EDM_SCHEDULER = re.compile(r"^EDM")


def prediction(checkpoint: BaseCheckpoint) -> Prediction:
    """The stated prediction; epsilon when none is stated. It may be unsupported.

    A single file states it by the tensors ``v_pred`` and ``ztsnr`` and those of EDM, which ComfyUI reads too, or by
    ``modelspec.prediction_type``; a folder by its scheduler's configuration.
    """
    if checkpoint.kind == "folder":
        config = read_scheduler(checkpoint.path)
        name = str(config.get("_class_name", ""))
        kind = _kind(str(config.get("prediction_type") or "epsilon"))
        if _EDM_SCHEDULER.match(name):
            kind = EDM_VELOCITY if kind == "v_prediction" else EDM
        elif _FLOW_SCHEDULER.match(name):
            kind = FLOW
        return Prediction(kind, bool(config.get("rescale_betas_zero_snr")))
    if "edm_mean" in checkpoint.shapes or "edm_std" in checkpoint.shapes:
        return Prediction(EDM)
    if "edm_vpred.sigma_max" in checkpoint.shapes:
        return Prediction(EDM_VELOCITY)
    stated = checkpoint.metadata.get("modelspec.prediction_type", "")
    kind = "v_prediction" if "v_pred" in checkpoint.shapes else _kind(stated or "epsilon")
    return Prediction(kind, "ztsnr" in checkpoint.shapes)


def states_prediction(checkpoint: BaseCheckpoint) -> bool:
    """Whether the checkpoint states its prediction at all."""
    if checkpoint.kind == "folder":
        return "prediction_type" in read_scheduler(checkpoint.path)
    markers = ("v_pred", "edm_mean", "edm_std", "edm_vpred.sigma_max")
    return bool(checkpoint.metadata.get("modelspec.prediction_type")) or any(name in checkpoint.shapes for name in markers)


def has_other_noise_levels(scheduler: str) -> bool:
    """Whether the noise levels of this scheduler class do not come from betas: those of EDM and of rectified flows."""
    return bool(_EDM_SCHEDULER.match(scheduler) or _FLOW_SCHEDULER.match(scheduler))


def _kind(stated: str) -> str:
    spelled = stated.strip().lower().replace("-", "_").replace(" ", "_")
    return next((kind for kind, spellings in _SPELLINGS.items() if spelled in spellings), spelled[:40])
