"""Check at the start that the models which the settings name exist, whether or not this run will use them."""

from __future__ import annotations

from pathlib import Path

from ...config.prepare_settings import PrepareSettings
from ...core.messages import DatasetSetting, Message
from ..captions.tagger import model_with_tags
from ..images.face_model import require_face_model


def check_models(settings: PrepareSettings) -> list[str]:
    """Warnings about models that other settings leave unused. Raises UserError for a tagger or face detector that does not exist."""
    warnings: list[str] = []
    if settings.tagger is not None:
        model_with_tags(Path(settings.tagger.model))
        if settings.captions.source in ("instance", "sidecar"):
            warnings.append(Message("The tagger is not used: ", DatasetSetting("captions.source"), f' is "{settings.captions.source}".'))
    if settings.face_model:
        require_face_model(settings.face_model)
        if settings.crop != "face":
            warnings.append(Message("The face detector is not used: ", DatasetSetting("crop"), f' is "{settings.crop}", not "face".'))
    return warnings
