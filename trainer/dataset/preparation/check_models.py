"""The models that a user names in the settings: looked for before anything is done, needed in the end or not."""

from __future__ import annotations

from pathlib import Path

from ..captions.tagger import model_with_tags
from ..images.face_model import require_file
from ..settings import PrepareSettings


def check_models(settings: PrepareSettings) -> list[str]:
    """Raises UserError for a tagger or face detector that is not there; warnings about one that the other settings leave unused."""
    found = []
    if settings.tagger is not None:
        model_with_tags(Path(settings.tagger.model))
        if settings.captions.source in ("instance", "sidecar"):
            found.append(f'The tagger is not used: captions.source is "{settings.captions.source}".')
    if settings.face_model:
        require_file(settings.face_model)
        if settings.crop != "face":
            found.append(f'The face detector is not used: crop is "{settings.crop}", not "face".')
    return found
