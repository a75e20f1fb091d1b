"""Which node shows which setting of a dataset, one line each.

New widgets go to the end of their node: saved workflows know widgets by their position.
"""

from __future__ import annotations

from collections.abc import Mapping

from ....trainer.config.prepare_settings import PrepareSettings
from .values import renamed_tags, tags
from .widget import NodeWidgets, Widget

NO_FILE = "(none)"
_NO_PATH = "a menu's words for no path"

DATASET_PREP_WIDGETS = NodeWidgets(
    "DatasetPrep",
    "Dataset Prep",
    PrepareSettings,
    (
        "folder",
        Widget("trigger_word", "trigger", default="myAnimeStyleToken", because="the reference run's", required=True),
        Widget("class_description", "class_description", default="anime_face", because="the reference run's", required=True),
        Widget("resolution", "resolution", min=64, max=2048, step=64, required=True),
        "crop_mode",
        Widget("repeats", "repeats", max=1000, required=True),
        Widget("caption_source", "captions.source", choices=("auto", "sidecar", "instance"), required=True),
        "images",
        "captions",
        "upscale_model",
        "options",
    ),
)
DATASET_OPTIONS_WIDGETS = NodeWidgets(
    "DatasetOptions",
    "Dataset Options",
    PrepareSettings,
    (
        Widget("tagger", "tagger.model", note="Put both in models/taggers; needs onnxruntime.", default=NO_FILE, because=_NO_PATH),
        "use_tags",
        Widget("tag_threshold", "tagger.threshold", min=0.01, step=0.01),
        Widget("character_threshold", "tagger.character_threshold", min=0.01, step=0.01),
        Widget("never_tag", "tagger.blacklist", note="Separate tags by commas.", read=tags),
        Widget("replace_tags", "captions.replace", note="One pair a line: old tag = new tag.", read=renamed_tags, multiline=True),
        Widget("remove_tags", "captions.remove", note="Separate tags by commas.", read=tags),
        Widget("first_tags", "captions.first", note="Separate tags by commas.", read=tags),
        Widget("tag_order", "captions.order"),
        Widget("shuffle_tags", "training.shuffle_caption"),
        Widget("keep_tokens", "training.keep_tokens"),
        Widget("caption_dropout", "training.caption_dropout", step=0.01),
        Widget("tag_dropout", "training.tag_dropout", step=0.01),
        Widget("mirror", "training.flip"),
        Widget("transparency", "alpha"),
        Widget("background", "background"),
        Widget("filter", "resample"),
        Widget("smallest_side", "clean.min_side"),
        Widget("drop_near_duplicates", "clean.near_duplicates"),
        Widget("near_distance", "clean.near_distance"),
        Widget("bucket_step", "buckets.step"),
        Widget("bucket_min", "buckets.min_side"),
        Widget("bucket_max", "buckets.max_side"),
        Widget("bucket_no_upscale", "buckets.no_upscale"),
        Widget("face_detector", "face_model", note="Put it in models/face_detectors.", default=NO_FILE, because=_NO_PATH),
        "regularisation_folder",
        Widget("regularisation_weight", "regularisation_weight", step=0.05),
        Widget("trigger_position", "captions.trigger_position", advanced=True),
        Widget("tag_separator", "captions.separator", advanced=True),
        Widget("wildcards", "training.wildcards", advanced=True),
    ),
)
DATASET_NODES = (DATASET_PREP_WIDGETS, DATASET_OPTIONS_WIDGETS)
DATASET_TITLE_AND_WIDGET: Mapping[str, tuple[str, str]] = {  # by key, for messages: ("Dataset Options", "remove_tags")
    widget.key: (node.title, widget.name) for node in DATASET_NODES for widget in node.widgets
}
NOT_ON_A_DATASET_NODE: Mapping[str, str] = {  # settings without a widget, and why
    "shape": "the widget crop_mode sets shape and crop together",
    "crop": "the widget crop_mode sets shape and crop together",
    "upscaler": "follows from the connected upscale model",
    "clean.max_megapixels": "protects against decompression bombs; nobody needs another limit on the canvas",
    "clean.max_aspect": "rarely needed; set it in a TOML file",
    "clean.leave_out": "on the canvas, images are left out by moving them out of the folder",
    "captions.extensions": "rarely needed; set it in a TOML file",
    "captions.prefix": "rarely needed; set it in a TOML file",
    "captions.suffix": "rarely needed; set it in a TOML file",
    "captions.underscores": "rarely needed; set it in a TOML file",
    "tagger.characters": "rarely needed; set it in a TOML file",
    "tagger.ratings": "rarely needed; set it in a TOML file",
    "training.keep_tokens_separator": "rarely needed; set it in a TOML file",
}
