"""Choose what a run trains its denoiser to predict, and the noise process that belongs to it."""

from __future__ import annotations

from ..config.sections.objective import ObjectiveSection
from ..core.errors import UserError
from ..core.messages import Message, Setting
from ..families import FLOW, BaseCheckpoint, Family, Prediction, choose_kind, supported_predictions
from .diffusion import Diffusion
from .noise_process import NoiseProcess
from .rectified_flow import RectifiedFlow


def choose_prediction(family: Family, checkpoint: BaseCheckpoint, settings: ObjectiveSection) -> Prediction:
    """What the denoiser of ``checkpoint`` is trained to predict: what its file states, unless ``settings`` override it.

    Raises UserError for what cannot be trained, and for settings that have no meaning with this prediction.
    """
    stated = family.prediction(checkpoint)
    supported = supported_predictions(family)
    kind = choose_kind(stated, settings.prediction, supported, name=checkpoint.name, title=family.title)
    prediction = Prediction(kind, _ends_in_noise(stated, kind, settings))
    (RectifiedFlow if kind == FLOW else Diffusion).require_meaningful(settings)
    return prediction


def make_noise_process(family: Family, prediction: Prediction) -> NoiseProcess:
    """The noise process of models of ``family`` that predict ``prediction``, one of the ``supported_predictions``."""
    if prediction.kind == FLOW and family.flow is not None:
        return RectifiedFlow(family.flow)
    assert family.beta_schedule is not None
    return Diffusion(family.beta_schedule, prediction)


def describe_prediction(prediction: Prediction) -> str:
    """``prediction`` in the words of the settings."""
    return prediction.words + (" with zero terminal SNR" if prediction.zero_terminal_snr else "")


def _ends_in_noise(stated: Prediction, kind: str, settings: ObjectiveSection) -> bool:
    """Whether a diffusion of this ``kind`` has zero terminal SNR."""
    if kind == "epsilon" and settings.zero_terminal_snr == "on":
        raise UserError(
            Message(
                Setting("objective.zero_terminal_snr"),
                " is on, but this checkpoint predicts the noise, and from pure noise it learns nothing.",
            ),
            Message(
                'Leave it at "auto". If this is a v-prediction checkpoint that does not say so, set ',
                Setting("objective.prediction", "v-prediction"),
                ".",
            ),
            kind="config",
        )
    if kind != "v_prediction":
        return False
    return stated.zero_terminal_snr if settings.zero_terminal_snr == "auto" else settings.zero_terminal_snr == "on"
