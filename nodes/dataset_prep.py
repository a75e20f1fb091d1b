"""Dataset Prep: a folder of pictures, or a batch, becomes a clean captioned dataset."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .folders import source_folders
from .schema import field, result, schema
from .types import DATASET

FROM_INPUT = "(images input)"
CROP_MODES = ("centre", "face", "buckets")
CAPTION_SOURCES = ("auto", "sidecar", "instance")


class DatasetPrep(io.ComfyNode):
    """Schema and call of Dataset Prep."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help."""
        return schema(
            "DatasetPrep",
            "Dataset Prep",
            "Turns a folder of pictures (or an image batch) into a clean, captioned dataset for training a LoRA.",
            [
                field(
                    io.Combo,
                    "folder",
                    "The folder with your pictures. Put it below ComfyUI's input folder and refresh the page. "
                    "Choose the first entry to use the images input instead.",
                    options=[FROM_INPUT, *source_folders()],
                    default=FROM_INPUT,
                ),
                field(
                    io.String,
                    "trigger_word",
                    "A made-up word that will call up the style in your prompts. Choose one that means nothing else.",
                    default="myAnimeStyleToken",
                ),
                field(
                    io.String,
                    "class_description",
                    "What the pictures show, in a word or two. It is put in each caption after the trigger word and names the folder.",
                    default="anime_face",
                ),
                field(
                    io.Int,
                    "resolution",
                    "The size your model is trained at: 512 for Stable Diffusion 1.5, 1024 for SDXL. Small pictures are enlarged.",
                    default=512,
                    min=64,
                    max=2048,
                    step=64,
                ),
                field(
                    io.Combo,
                    "crop_mode",
                    "How pictures that are not square are fitted: a square around the centre, a square around the face, "
                    "or nearly their own shape (buckets).",
                    options=list(CROP_MODES),
                    default=CROP_MODES[0],
                ),
                field(
                    io.Int,
                    "repeats",
                    "How often each picture is shown in one epoch. Raise it when you have only a few pictures.",
                    default=1,
                    min=1,
                    max=1000,
                ),
                field(
                    io.Combo,
                    "caption_source",
                    "Where the descriptions come from: text files beside the pictures where there are any (auto), "
                    "text files for every picture (sidecar), or only the trigger word and class (instance).",
                    options=list(CAPTION_SOURCES),
                    default=CAPTION_SOURCES[0],
                ),
                field(io.Image, "images", "Pictures from other nodes, used when the folder is set to the first entry.", optional=True),
                field(
                    io.String,
                    "captions",
                    "Captions for the images input, one line per picture. A single line is used for all of them.",
                    optional=True,
                    force_input=True,
                ),
                field(
                    io.UpscaleModel,
                    "upscale_model",
                    "A model that enlarges small pictures better than the built-in filter (from Load Upscale Model).",
                    optional=True,
                ),
            ],
            [
                result(DATASET, "dataset", "The prepared dataset, for Train LoRA."),
                result(io.Image, "contact_sheet", "All pictures of the dataset at a glance."),
                result(io.String, "report", "What was kept, what was left out and why."),
            ],
            search=["lora dataset", "prepare images", "captions", "training data"],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        """Prepare the dataset."""
        raise NotImplementedError
