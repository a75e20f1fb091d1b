"""What a denoiser predicts: the noise, the velocity of a diffusion, that of a rectified flow, or something that cannot be trained yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.errors import UserError
from ..core.messages import Message, Setting

FLOW = "flow"
EDM = "edm"
EDM_VELOCITY = "edm_v_prediction"
_UNSUPPORTED = {
    EDM: "denoised images at EDM's noise levels, as Playground 2.5 does",
    EDM_VELOCITY: "the velocity at EDM's noise levels, as CosXL does",
    FLOW: "the velocity of a rectified flow",
    "sample": "the denoised image (sample)",
}


@dataclass(frozen=True)
class Prediction:
    """What a checkpoint's denoiser was trained to predict. ``kind`` is ``"epsilon"`` (the noise), ``"v_prediction"``, ``"flow"`` (noise
    minus latents, the velocity of a rectified flow), or the name of an objective that is not supported.

    ``zero_terminal_snr``: the last timestep of a diffusion is pure noise (Lin et al. 2023, "Common Diffusion Noise Schedules and Sample
    Steps are Flawed", section 3.1).
    """

    kind: str = "epsilon"
    zero_terminal_snr: bool = False

    @property
    def words(self) -> str:
        """The kind as the settings spell it."""
        return self.kind.replace("_", "-")


EPSILON = Prediction()
DIFFUSION = ("epsilon", "v_prediction")


def choose_kind(stated: Prediction, wanted: str, supported: Sequence[str], *, name: str, title: str) -> str:
    """The kind that the checkpoint ``name`` is trained and sampled for: ``stated`` by its file, unless ``wanted`` (a value of
    ``objective.prediction``) overrides it.

    ``supported`` are the kinds of its family, which is called ``title``. Raises UserError for any other. A family that is trained both as a
    diffusion and as a flow is never taken for a flow because of what a file states: there is no agreed marker, and a wrong one would spoil
    the LoRA without notice.
    """
    setting = Setting("objective.prediction")
    choices = " or ".join(Prediction(kind).words for kind in supported)
    if stated.kind in (EDM, EDM_VELOCITY):  # its noise levels differ too, so that no other target makes it trainable
        raise _cannot_train(stated, name, Message(f"Use a checkpoint that predicts {choices}."))
    if wanted != "auto":
        kind = wanted.replace("-", "_")
        if kind not in supported:
            what = Message(setting, f" is {wanted}, but {title} is trained for {choices}.")
            raise UserError(what, Message("Set ", Setting("objective.prediction", "auto"), "."), kind="config")
        return kind
    if stated.kind == FLOW and FLOW in supported and len(supported) > 1:
        raise UserError(
            f"{name} states that it is a rectified flow, which is trained and sampled only on request.",
            Message("Set ", Setting("objective.prediction", FLOW), ", or epsilon or v-prediction if its file is wrong."),
            kind="checkpoint",
        )
    if stated.kind not in supported:
        hint = Message(f"Use a checkpoint that predicts {choices}. If this one does and its file is wrong, set ", setting, ".")
        raise _cannot_train(stated, name, hint)
    return stated.kind


def _cannot_train(stated: Prediction, name: str, hint: Message) -> UserError:
    target = _UNSUPPORTED.get(stated.kind, f"{stated.kind!r}, which AnimeLoRA does not know")
    return UserError(f"{name} predicts {target}. This version cannot train such models.", hint, kind="checkpoint")
