"""Dataset Options: tagger, tag editing, cleaning, buckets and more settings for Dataset Prep."""

from __future__ import annotations

import json
from typing import Any

from comfy_api.latest import io

from .shared.failures import canvas_errors
from .shared.files.folders import model_files, source_folder, source_folders, tree_digest
from .shared.inputs.socket_types import DATASET_OPTIONS, DatasetOptions
from .shared.schema import field, inputs, result, schema
from .shared.widgets.dataset_widgets import DATASET_OPTIONS_WIDGETS, NO_FILE

TAG_USES = {"where there is no caption": "auto", "instead of captions": "tags", "added to captions": "sidecar+tags"}
TAGGERS = "animelora_taggers"  # keys of model folders in extra_model_paths.yaml
FACE_MODELS = "animelora_face_detectors"


class DatasetOptionsNode(io.ComfyNode):
    """Schema and call of Dataset Options."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help."""
        return schema(
            DATASET_OPTIONS_WIDGETS.node,
            DATASET_OPTIONS_WIDGETS.title,
            "Captions by a tagger, tag editing, cleaning, buckets, transparency and regularisation images. Connect it to Dataset Prep.",
            inputs(
                DATASET_OPTIONS_WIDGETS,
                tagger=[NO_FILE, *model_files(TAGGERS, "taggers")],
                use_tags=field(
                    io.Combo,
                    "use_tags",
                    "Whether the tagger fills in missing captions, replaces all captions, or adds to them.",
                    options=list(TAG_USES),
                    default=next(iter(TAG_USES)),
                    optional=True,
                ),
                face_detector=[NO_FILE, *model_files(FACE_MODELS, "face_detectors")],
                regularisation_folder=field(
                    io.Combo,
                    "regularisation_folder",
                    "A second set of ordinary images, trained without the trigger word, so that the model keeps what it knows.",
                    options=[NO_FILE, *source_folders()],
                    default=NO_FILE,
                    optional=True,
                ),
            ),
            [result(DATASET_OPTIONS, "options", "For the options input of Dataset Prep.")],
            search=["tagger", "wd14", "captions", "regularization", "buckets", "tags"],
        )

    @classmethod
    def fingerprint_inputs(cls, regularisation_folder: str = NO_FILE, **_: Any) -> str:
        """Changes with the files of the regularisation set."""
        return "" if regularisation_folder == NO_FILE else tree_digest(source_folder(regularisation_folder))

    @classmethod
    def execute(cls, **widgets: Any) -> io.NodeOutput:
        """The options as plain data; Dataset Prep validates them."""
        with canvas_errors():
            folder = widgets.get("regularisation_folder", NO_FILE)
            if folder != NO_FILE:
                source_folder(folder)  # reports a missing folder on the node where it was chosen
            return io.NodeOutput(DatasetOptions(json.dumps(as_settings(widgets), sort_keys=True), "" if folder == NO_FILE else folder))


def as_settings(widgets: dict[str, Any]) -> dict[str, Any]:
    """The dataset settings that the widgets describe."""
    settings = DATASET_OPTIONS_WIDGETS.settings(widgets)
    tagger = widgets.get("tagger", NO_FILE)
    if tagger == NO_FILE:
        settings.pop("tagger", None)
    else:
        settings["tagger"]["model"] = str(model_files(TAGGERS, "taggers")[tagger])
        settings.setdefault("captions", {})["source"] = TAG_USES[widgets.get("use_tags", next(iter(TAG_USES)))]
    face_model = settings.pop("face_model", NO_FILE)
    if face_model != NO_FILE:
        settings["face_model"] = str(model_files(FACE_MODELS, "face_detectors")[face_model])
    return settings
