"""What a denoiser predicts: the noise, the velocity, or something that cannot be trained yet."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import UserError
from ..core.messages import Message, Setting

EDM = "edm"
EDM_VELOCITY = "edm_v_prediction"
FLOW = "flow_prediction"
_UNSUPPORTED = {
    EDM: "denoised images at EDM's noise levels, as Playground 2.5 does",
    EDM_VELOCITY: "the velocity at EDM's noise levels, as CosXL does",
    FLOW: "the velocity of a rectified flow (flow_prediction)",
    "sample": "the denoised image (sample)",
}


@dataclass(frozen=True)
class Prediction:
    """What a checkpoint's denoiser was trained to predict. ``kind`` is ``"epsilon"`` (the noise), ``"v_prediction"``, or the name of an
    objective that is not supported.

    ``zero_terminal_snr``: the last timestep is pure noise (Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are
    Flawed", section 3.1).
    """

    kind: str = "epsilon"
    zero_terminal_snr: bool = False

    @property
    def is_supported(self) -> bool:
        """Whether models of this kind can be trained and sampled."""
        return self.kind in ("epsilon", "v_prediction")


EPSILON = Prediction()


def require_supported(prediction: Prediction, name: str, *, overridden: bool = False) -> None:
    """Raise UserError unless a LoRA can be trained for what the checkpoint ``name`` predicts.

    ``overridden``: the user has set the prediction. That cannot make an EDM model trainable, because its noise levels differ too.
    """
    uses_edm = prediction.kind in (EDM, EDM_VELOCITY)
    if prediction.is_supported or (overridden and not uses_edm):
        return
    target = _UNSUPPORTED.get(prediction.kind, f"{prediction.kind!r}, which AnimeLoRA does not know")
    hint = Message("Use a checkpoint that predicts the noise (epsilon) or the velocity (v-prediction).")
    if not uses_edm:
        prediction_setting = Setting("objective.prediction")
        hint = Message(hint, " If this one does and its file is wrong, set ", prediction_setting, " to epsilon or v-prediction.")
    raise UserError(f"{name} predicts {target}. This version cannot train such models.", hint, kind="checkpoint")
