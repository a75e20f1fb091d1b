"""Dataset Options: what Dataset Prep can do beyond its own widgets, in one optional node."""

from __future__ import annotations

import json
from typing import Any, get_args

from comfy_api.latest import io

from ..trainer.core.errors import UserError
from ..trainer.dataset import settings as choices
from .shared.failures import readable
from .shared.folders import model_files, source_folder, source_folders, tree_digest
from .shared.prompts import lines
from .shared.schema import field, result, schema
from .shared.types import DATASET_OPTIONS, DatasetOptions

NONE = "(none)"
TAG_USES = {"where there is no caption": "auto", "instead of captions": "tags", "added to captions": "sidecar+tags"}
TAGGERS = "animelora_taggers"  # the keys under which people register model folders in extra_model_paths.yaml
FACE_MODELS = "animelora_face_detectors"


class DatasetOptionsNode(io.ComfyNode):
    """Schema and call of Dataset Options."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help; each default is Dataset Prep's own."""
        return schema(
            "DatasetOptions",
            "Dataset Options",
            "Captions by a tagger, tag editing, cleaning, buckets, transparency and regularisation pictures. Connect it to Dataset Prep.",
            [
                field(
                    io.Combo,
                    "tagger",
                    "A WD tagger that writes tags for you: model.onnx with selected_tags.csv beside it, in models/taggers (onnxruntime).",
                    options=[NONE, *model_files(TAGGERS, "taggers")],
                    default=NONE,
                ),
                field(
                    io.Combo,
                    "use_tags",
                    "Whether the tagger fills in for missing captions, replaces all captions, or adds to them.",
                    options=list(TAG_USES),
                    default=next(iter(TAG_USES)),
                ),
                field(
                    io.Float,
                    "tag_threshold",
                    "How sure the tagger must be of a tag. Lower gives more tags.",
                    default=0.35,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                ),
                field(
                    io.Float,
                    "character_threshold",
                    "How sure the tagger must be of a character's name.",
                    default=0.85,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                ),
                field(io.String, "never_tag", "Tags that the tagger shall never write, separated by commas.", default=""),
                field(
                    io.String,
                    "replace_tags",
                    "Tags to rename, one a line: old tag = new tag.",
                    default="",
                    multiline=True,
                ),
                field(
                    io.String,
                    "remove_tags",
                    "Tags to leave out of every caption, separated by commas. "
                    "A star stands for anything: *_hair removes blonde_hair and long_hair.",
                    default="",
                ),
                field(
                    io.String, "first_tags", "Tags that stand first after the trigger word where present, separated by commas.", default=""
                ),
                field(
                    io.Combo,
                    "tag_order",
                    "The order of the other tags: as they are, alphabetical, or the most frequent first.",
                    options=list(get_args(choices.TagOrder)),
                    default="keep",
                ),
                field(
                    io.Boolean,
                    "shuffle_tags",
                    "Tags are shuffled in each step of training, so that their order means nothing.",
                    default=False,
                ),
                field(io.Int, "keep_tokens", "So many tags in front are never shuffled or dropped.", default=1, min=0, max=255),
                field(
                    io.Float,
                    "caption_dropout",
                    "The share of training steps without any caption: the style then also shows without its trigger word.",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                ),
                field(io.Float, "tag_dropout", "The share of tags left out in each step.", default=0.0, min=0.0, max=1.0, step=0.01),
                field(
                    io.Boolean,
                    "mirror",
                    "Also train on mirrored pictures. Not for characters with something on one side only.",
                    default=False,
                ),
                field(
                    io.Combo,
                    "transparency",
                    "Transparent parts are filled with the background colour, and with mask they also do not count in training.",
                    options=list(get_args(choices.AlphaMode)),
                    default="background",
                ),
                field(io.String, "background", "The colour behind transparent parts: #rrggbb or a name.", default="#ffffff"),
                field(
                    io.Combo,
                    "filter",
                    "How pictures are scaled. lanczos is the sharpest; nearest keeps pixel art.",
                    options=list(get_args(choices.Resample)),
                    default="lanczos",
                ),
                field(
                    io.Int,
                    "smallest_side",
                    "Pictures with a shorter side below this are left out.",
                    default=64,
                    min=1,
                    max=8192,
                ),
                field(io.Boolean, "drop_near_duplicates", "Leave out pictures that look almost like another one.", default=True),
                field(
                    io.Int,
                    "near_distance",
                    "How alike two pictures must look to be compared in detail; only sure copies are left out. Higher compares more pairs.",
                    default=12,
                    min=0,
                    max=64,
                ),
                field(io.Int, "bucket_step", "With buckets: sides are multiples of this.", default=64, min=8, max=512, step=8),
                field(
                    io.Int, "bucket_min", "With buckets: the shortest side. 0 chooses it from the resolution.", default=0, min=0, max=8192
                ),
                field(
                    io.Int, "bucket_max", "With buckets: the longest side. 0 chooses it from the resolution.", default=0, min=0, max=8192
                ),
                field(io.Boolean, "bucket_no_upscale", "With buckets: small pictures keep their size.", default=False),
                field(
                    io.Combo,
                    "face_detector",
                    "A face detector of your own (an .onnx file in models/face_detectors) for the crop modes face and buckets.",
                    options=[NONE, *model_files(FACE_MODELS, "face_detectors")],
                    default=NONE,
                ),
                field(
                    io.Combo,
                    "regularisation_folder",
                    "A second set of ordinary pictures, trained without the trigger word, so that the model keeps what it knew.",
                    options=[NONE, *source_folders()],
                    default=NONE,
                ),
                field(
                    io.Float,
                    "regularisation_weight",
                    "How much the second set counts.",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                ),
                field(
                    io.Combo,
                    "trigger_position",
                    "Where the trigger word stands: in front of every caption, or where the caption has it and in front only of the "
                    "others.",
                    options=list(get_args(choices.TriggerPosition)),
                    default="front",
                    optional=True,
                    advanced=True,
                ),
                field(
                    io.Combo,
                    "tag_separator",
                    "What stands between the tags of a caption. auto recognises lists with spaces, as image boards write them.",
                    options=list(get_args(choices.TagSeparator)),
                    default="auto",
                    optional=True,
                    advanced=True,
                ),
                field(
                    io.Boolean,
                    "wildcards",
                    "Choose one of several lines of a caption, and one of the words in braces, each time an image is shown.",
                    default=False,
                    optional=True,
                    advanced=True,
                ),
            ],
            [result(DATASET_OPTIONS, "options", "For the options input of Dataset Prep.")],
            search=["tagger", "wd14", "captions", "regularization", "buckets", "tags"],
        )

    @classmethod
    def fingerprint_inputs(cls, regularisation_folder: str = NONE, **_: Any) -> str:
        """Changes when a file of the regularisation set does."""
        return "" if regularisation_folder == NONE else tree_digest(source_folder(regularisation_folder))

    @classmethod
    def execute(cls, **widgets: Any) -> io.NodeOutput:
        """The options as plain data; Dataset Prep validates them with its own."""
        with readable():
            folder = widgets["regularisation_folder"]
            if folder != NONE:
                source_folder(folder)  # a folder that is gone is an error here, where it was chosen
            return io.NodeOutput(DatasetOptions(json.dumps(as_settings(widgets), sort_keys=True), "" if folder == NONE else folder))


def as_settings(widgets: dict[str, Any]) -> dict[str, Any]:
    """The widgets' values in the names of the dataset settings."""
    tagger = widgets["tagger"]
    captions: dict[str, Any] = {
        "replace": _renames(widgets["replace_tags"]),
        "remove": _tags(widgets["remove_tags"]),
        "first": _tags(widgets["first_tags"]),
        "order": widgets["tag_order"],
        # workflows saved before these widgets were there do not have them
        "trigger_position": widgets.get("trigger_position", "front"),
        "separator": widgets.get("tag_separator", "auto"),
    }
    data: dict[str, Any] = {
        "captions": captions,
        "training": {
            "shuffle_caption": widgets["shuffle_tags"],
            "keep_tokens": widgets["keep_tokens"],
            "caption_dropout": widgets["caption_dropout"],
            "tag_dropout": widgets["tag_dropout"],
            "flip": widgets["mirror"],
            "wildcards": widgets.get("wildcards", False),
        },
        "alpha": widgets["transparency"],
        "background": widgets["background"],
        "resample": widgets["filter"],
        "clean": {
            "min_side": widgets["smallest_side"],
            "near_duplicates": widgets["drop_near_duplicates"],
            "near_distance": widgets["near_distance"],
        },
        "buckets": {
            "step": widgets["bucket_step"],
            "min_side": widgets["bucket_min"],
            "max_side": widgets["bucket_max"],
            "no_upscale": widgets["bucket_no_upscale"],
        },
        "regularisation_weight": widgets["regularisation_weight"],
    }
    if tagger != NONE:
        captions["source"] = TAG_USES[widgets["use_tags"]]
        data["tagger"] = {
            "model": str(model_files(TAGGERS, "taggers")[tagger]),
            "threshold": widgets["tag_threshold"],
            "character_threshold": widgets["character_threshold"],
            "blacklist": _tags(widgets["never_tag"]),
        }
    if widgets["face_detector"] != NONE:
        data["face_model"] = str(model_files(FACE_MODELS, "face_detectors")[widgets["face_detector"]])
    return data


def _tags(text: str) -> list[str]:
    return [tag.strip() for line in lines(text) for tag in line.split(",") if tag.strip()]


def _renames(text: str) -> dict[str, str]:
    """``old = new`` by line. UserError for a line without one."""
    pairs: dict[str, str] = {}
    for line in lines(text):
        # with spaces first: =_= is a tag
        old, equals, new = line.partition(" = ") if " = " in line else line.partition("=")
        if not equals or not old.strip():
            raise UserError(f"{line!r} in replace_tags has no old tag = new tag.", "Write one pair in each line: grey hair = gray hair")
        pairs[old.strip()] = new.strip()
    return pairs
