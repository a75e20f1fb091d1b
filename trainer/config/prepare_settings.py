"""What the user can choose when a dataset is prepared: one validated model, used by the node and the command line alike."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError, field_validator, model_validator

from ..core.errors import UserError
from ..core.files.text_file import read_text
from ..core.messages import Action, DatasetSetting, Message
from .prepare_sections import BucketSettings, CaptionSettings, CleanSettings, TaggerSettings, TrainingHints
from .sections.section import Section
from .setting import setting, settings_of
from .validation_errors import describe_problems

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_SEE_DOCS = Message("Every setting is described in ", Action.READ_ABOUT_DATASET_SETTINGS, ".")
Shape = Literal["auto", "square", "buckets"]
Crop = Literal["top", "face", "centre", "none"]
Resample = Literal["lanczos", "bicubic", "bilinear", "area", "nearest"]
AlphaMode = Literal["background", "mask"]


class PrepareSettings(Section):
    """Everything that determines a prepared dataset, except its source."""

    trigger: str = setting(
        "",
        "A made-up word that will call up the style in your prompts. Choose one that has no other meaning.",
        why="Only you can choose it.",
        max_length=100,
    )
    class_description: str = setting(
        "",
        "What the images show, in a word or two. It follows the trigger word in captions and names the folder.",
        details="In captions of images that have no caption of their own.",
        why="Only you know what they show.",
        max_length=200,
    )
    resolution: int = setting(
        512,
        "The size your model is trained at: 512 for Stable Diffusion 1.5, 1024 for SDXL. Small images are enlarged.",
        details="Side of a square in pixels, or root of the buckets' area.",
        why="Stable Diffusion 1.5's.",
        ge=16,
        le=4096,
        multiple_of=8,
    )
    shape: Shape = setting(
        "auto",
        "Shape of the prepared images: all square, or buckets that nearly keep their own shape. auto uses buckets "
        "for images that are not square.",
        details="See [Sizes](#sizes). Without it, a `buckets` section means `buckets`.",
        why="Cuts off the least of each image.",
    )
    crop: Crop = setting(
        "top",
        "What stays of an image that is larger than its square or bucket: the top, the face, the centre, or everything (none).",
        details="See [Sizes](#sizes).",
        why="Heads are at the top.",
    )
    repeats: int = setting(
        1,
        "How many times an epoch shows each image. Raise it if you have only a few images.",
        details="Multiplies the number in front of a kohya folder's name.",
        why="Each image once.",
        ge=1,
        le=100_000,
    )
    resample: Resample = setting(
        "lanczos", "Filter that scales images. lanczos is the sharpest; nearest keeps pixel art.", why="The sharpest."
    )
    alpha: AlphaMode = setting(
        "background",
        "Fills transparent parts with the background colour (background), and also leaves them out of the training (mask).",
        why="Transparent parts are usually just background.",
    )
    background: str = setting("#ffffff", "Colour behind transparent parts: #rrggbb or a name.", why="Most drawings are on white.")
    upscaler: str = setting(
        "",
        "Name of the connected upscale model. Another name prepares small images again.",
        details="Set by Dataset Prep.",
        why="Lanczos needs no model.",
    )
    face_model: str = setting(
        "",
        "Your own face or head detector (an .onnx file), used when cropping to faces or into buckets.",
        details='With `crop = "face"`.',
        why="The built-in detector needs no file.",
    )
    regularisation_weight: float = setting(
        1.0, "How much the regularisation images count in the loss.", why="As much as other images.", ge=0, le=100
    )
    buckets: BucketSettings | None = None
    clean: CleanSettings = CleanSettings()
    captions: CaptionSettings = CaptionSettings()
    tagger: TaggerSettings | None = None
    training: TrainingHints = TrainingHints()

    @field_validator("trigger", "class_description")
    @classmethod
    def _one_line(cls, value: str) -> str:
        return " ".join(value.split())

    @field_validator("trigger")
    @classmethod
    def _no_comma(cls, value: str) -> str:
        if "," in value:
            raise ValueError("must not contain a comma: commas separate tags")
        return value

    @field_validator("background")
    @classmethod
    def _colour(cls, value: str) -> str:
        from PIL import ImageColor

        try:
            ImageColor.getrgb(value)
        except ValueError as error:
            raise ValueError(f"{value!r} is not a colour; write #rrggbb or a name such as white") from error
        return value

    @model_validator(mode="before")
    @classmethod
    def _shape_of_buckets(cls, data: Any) -> Any:
        if isinstance(data, dict) and "shape" not in data and "buckets" in data:
            return {**data, "shape": "square" if data["buckets"] is None else "buckets"}
        return data

    @model_validator(mode="after")
    def _buckets_fit(self) -> PrepareSettings:
        if self.shape == "square" and self.buckets is not None:
            raise ValueError('shape = "square" has no buckets; leave out one of the two')
        if self.shape == "buckets" or self.buckets is not None:
            low, high = bucket_sides(self)
            if not low <= self.resolution <= high:
                raise ValueError(f"bucket sides {low} to {high} must include the resolution {self.resolution}")
        if self.captions.source in ("tags", "sidecar+tags") and self.tagger is None:
            raise ValueError(Message(DatasetSetting("captions.source", self.captions.source), " needs a tagger model"))
        return self


def bucket_rules(settings: PrepareSettings) -> BucketSettings | None:
    """The rules by which images that are not square get their size; None where every image becomes a square."""
    if settings.shape == "square":
        return None
    low, high = bucket_sides(settings)
    # below the smallest bucket only squares are left
    return (settings.buckets or BucketSettings()) if low <= settings.resolution <= high else None


def bucket_sides(settings: PrepareSettings) -> tuple[int, int]:
    """The smallest and largest bucket side in pixels, multiples of the step (kohya rounds them so, too)."""
    rules = settings.buckets or BucketSettings()
    low = rules.min_side or min(256, settings.resolution // 2)
    high = rules.max_side or 2 * settings.resolution
    low = max(rules.step, low - low % rules.step)
    return low, max(rules.step, -(-high // rules.step) * rules.step)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a TOML file, not yet validated. Raises UserError."""
    try:
        data: dict[str, Any] = tomllib.loads(read_text(path, "settings file"))
        return data
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError
        raise UserError(f"The settings {path} are not valid TOML: {error}", _SEE_DOCS, kind="config") from error


def parse_settings(data: dict[str, Any]) -> PrepareSettings:
    """Validate plain data. Raises UserError that lists every problem with its key and the nearest valid one."""
    try:
        return PrepareSettings.model_validate(data)
    except ValidationError as error:
        problems = describe_problems(error, DatasetSetting, list(settings_of(PrepareSettings)))
        raise UserError(
            Message("The dataset settings are not valid:\n", problems),
            _SEE_DOCS,
            kind="config",
        ) from error


def dataset_folder_name(settings: PrepareSettings) -> str:
    """``<trigger>_<class>``, a valid folder name on Linux and Windows."""
    from ..core.files.paths import safe_name

    parts = [re.sub(r"\s+", " ", part) for part in (settings.trigger, settings.class_description) if part]
    return safe_name("_".join(parts), fallback="dataset")


def dataset_folder(out_root: Path, settings: PrepareSettings) -> Path:
    """Where ``prepare`` writes the dataset."""
    return out_root / dataset_folder_name(settings)
