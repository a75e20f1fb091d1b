"""Dataset Prep: turns a folder or batch of images into a clean, captioned dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io, ui

from ..trainer import dataset as datasets
from ..trainer.core.counting import plural
from ..trainer.core.errors import Cancelled, UserError
from .shared import dataset_fingerprint
from .shared.before_run.prepared_datasets import record_prepared
from .shared.browser import is_interrupted, show_text
from .shared.comfyui import core_nodes
from .shared.failures import canvas_errors
from .shared.files.folders import datasets_dir, readable_dirs, source_folder, source_folders, tree_digest
from .shared.files.images import from_pil, to_pil
from .shared.inputs.prompts import lines
from .shared.inputs.socket_types import DATASET, DATASET_OPTIONS, DatasetHandle, DatasetOptions, options_from_socket
from .shared.inputs.sockets import allow
from .shared.schema import field, inputs, result, schema
from .shared.widgets.dataset_widgets import DATASET_PREP_WIDGETS
from .shared.widgets.widget import merged
from .shared.wording import on_canvas

FROM_INPUT = "(images input)"
CROP_MODES = ("centre", "face", "buckets", "top")  # new modes go last, so that saved workflows keep theirs


class DatasetPrep(io.ComfyNode):
    """Schema and call of Dataset Prep."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help."""
        return schema(
            DATASET_PREP_WIDGETS.node,
            DATASET_PREP_WIDGETS.title,
            "Turns a folder of images (or an image batch) into a clean, captioned dataset for training a LoRA.",
            inputs(
                DATASET_PREP_WIDGETS,
                folder=field(
                    io.Combo,
                    "folder",
                    "The folder with your images. Put it below ComfyUI's input folder and refresh the page. "
                    "Choose the first entry to use the images input instead.",
                    options=[FROM_INPUT, *source_folders()],
                    default=FROM_INPUT,
                ),
                crop_mode=field(
                    io.Combo,
                    "crop_mode",
                    "How to fit images that are not square: nearly their own shape (buckets), a square from the top, a square around "
                    "the face if one is found for certain (else from the top), or a square around the centre, which cuts heads off.",
                    options=list(CROP_MODES),
                    default="buckets",
                ),
                images=field(io.Image, "images", "Images from other nodes, used if the folder is set to the first entry.", optional=True),
                captions=field(
                    io.String,
                    "captions",
                    "Captions for the images input, one line per image. A single line is used for all of them.",
                    optional=True,
                    force_input=True,
                ),
                upscale_model=field(
                    io.UpscaleModel,
                    "upscale_model",
                    "A model that enlarges small images better than the built-in filter (from Load Upscale Model).",
                    optional=True,
                ),
                options=field(
                    DATASET_OPTIONS,
                    "options",
                    "Tagger, tag editing, cleaning, buckets and regularisation images (from Dataset Options).",
                    optional=True,
                ),
            ),
            [
                result(DATASET, "dataset", "The prepared dataset, for Train LoRA."),
                result(io.Image, "contact_sheet", "All images of the dataset at a glance."),
                result(io.String, "report", "What was kept, what was left out and why."),
            ],
            search=["lora dataset", "prepare images", "captions", "training data"],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(
        cls, folder: str = FROM_INPUT, trigger_word: str | None = None, class_description: str | None = None, **_: Any
    ) -> str:
        """Changes with the files in the chosen folder and with edits of the prepared dataset, so that the node runs again."""
        source = "" if folder == FROM_INPUT else tree_digest(source_folder(folder))
        return source + dataset_fingerprint.dataset_fingerprint(_target(trigger_word, class_description))

    @classmethod
    def execute(
        cls,
        folder: str,
        trigger_word: str,
        class_description: str,
        resolution: int,
        crop_mode: str,
        repeats: int,
        caption_source: str,
        images: torch.Tensor | None = None,
        captions: str | None = None,
        upscale_model: Any = None,
        options: DatasetOptions | None = None,
    ) -> io.NodeOutput:
        """Prepare the dataset; finished images are reused."""
        with canvas_errors():
            widgets = {
                "folder": folder, "trigger_word": trigger_word, "class_description": class_description, "resolution": resolution,
                "crop_mode": crop_mode, "repeats": repeats, "caption_source": caption_source,
            }  # fmt: skip
            allow(images=images, upscale_model=upscale_model)
            options = options_from_socket(options, DatasetOptions)
            extra = json.loads(options.settings) if options is not None else {}
            rules = extra.pop("buckets", {})
            own = DATASET_PREP_WIDGETS.settings(
                {
                    "trigger_word": trigger_word,
                    "class_description": class_description,
                    "resolution": resolution,
                    "repeats": repeats,
                    **({"caption_source": caption_source} if caption_source != "auto" else {}),
                }
            )
            settings = datasets.parse_settings(
                {
                    **merged(extra, own),
                    "shape": "buckets" if crop_mode == "buckets" else "square",
                    "crop": _crop(crop_mode, has_detector="face_model" in extra),
                    "buckets": rules if crop_mode == "buckets" else None,
                    "upscaler": "" if upscale_model is None else _name(upscale_model),
                }
            )
            done = datasets.prepare_dataset(
                _source(folder, images, captions),
                datasets_dir(),
                settings,
                upscaler=None if upscale_model is None else lambda image: to_pil(core_nodes.upscale(upscale_model, from_pil(image))[0]),
                regularisation=source_folder(options.regularisation) if options is not None and options.regularisation else None,
                progress=_Progress(cls.hidden.unique_id),
                should_stop=is_interrupted,
                inside=readable_dirs(),
            )
            dataset = done.dataset
            dataset_fingerprint.record_dataset(dataset.path)
            handle = DatasetHandle(str(dataset.path), dataset.hash, dataset.trigger, dataset.class_description, len(dataset.items))
            record_prepared(cls.hidden.unique_id, widgets, handle)
            report = on_canvas(done.report.text())
            return io.NodeOutput(handle, from_pil(datasets.contact_sheet(dataset, done.sources)), report, ui=ui.PreviewText(report))


def _crop(mode: str, *, has_detector: bool) -> str:
    """The setting ``crop``. Buckets crop little: at the face if the user has a detector, else from the top."""
    return ("face" if has_detector else "top") if mode == "buckets" else mode


class _Progress:
    """Shows the progress in the node; raises Cancelled when the prompt was cancelled."""

    def __init__(self, node_id: str | None) -> None:
        self._node_id = node_id
        self._bar = comfy.utils.ProgressBar(1, node_id=node_id)
        self._what = ""

    def __call__(self, done: int, total: int, what: str) -> None:
        if what != self._what:
            self._what = what
            show_text(self._node_id, what)
        try:
            self._bar.update_absolute(done, max(1, total))
        except comfy.model_management.InterruptProcessingException as error:
            raise Cancelled from error


def _target(trigger_word: str | None, class_description: str | None) -> Path | None:
    """The folder of the dataset without a number; None while the output of another node decides its name."""
    if trigger_word is None or class_description is None:
        return None
    return datasets.dataset_folder(
        datasets_dir(), datasets.parse_settings({"trigger": trigger_word, "class_description": class_description})
    )


def _source(folder: str, images: torch.Tensor | None, captions: str | None) -> Path | list[datasets.SourceImage]:
    if folder != FROM_INPUT:
        return source_folder(folder)
    if images is None:
        raise UserError("There are no images.", "Choose a folder, or connect images to the images input.", kind="dataset")
    texts = lines(captions or "")
    if len(texts) not in (0, 1, len(images)):
        raise UserError(
            f"There are {plural(len(images), 'image')} but {plural(len(texts), 'caption')}.",
            "Connect one line of caption for each image, or a single line for all.",
            kind="dataset",
        )
    return [
        datasets.SourceImage(to_pil(image), f"image_{number:05d}", texts[number % len(texts)] if texts else None)
        for number, image in enumerate(images)
    ]


def _name(upscale_model: Any) -> str:
    """A name that distinguishes upscale models: architecture, factor and the sum of the weights."""
    model = upscale_model.model if hasattr(upscale_model, "model") else upscale_model
    total = sum(float(p.detach().double().sum()) for p in model.parameters()) if hasattr(model, "parameters") else 0.0
    return f"{type(model).__name__} x{getattr(upscale_model, 'scale', '?')} {total:.6g}"
