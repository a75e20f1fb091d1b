"""What the user can choose when a dataset is prepared: one validated model, used by the node and the command line alike."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..config.validation_errors import describe_problems
from ..core.errors import UserError
from ..core.messages import Action, DatasetSetting, Message

Shape = Literal["auto", "square", "buckets"]
Crop = Literal["top", "face", "centre", "none"]
Resample = Literal["lanczos", "bicubic", "bilinear", "area", "nearest"]
AlphaMode = Literal["background", "mask"]
CaptionSource = Literal["auto", "instance", "sidecar", "tags", "sidecar+tags"]
TagOrder = Literal["keep", "alphabetical", "frequency"]
TagSeparator = Literal["auto", "comma", "space"]
TriggerPosition = Literal["front", "keep"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_max_length=20_000)


class BucketSettings(_Part):
    """Aspect-ratio buckets by kohya's rules. 0 means: chosen from the resolution."""

    step: Annotated[int, Field(ge=8, le=512, multiple_of=8)] = 64
    min_side: Annotated[int, Field(ge=0, le=8192)] = 0  # 0: 256, or half the resolution below 512
    max_side: Annotated[int, Field(ge=0, le=8192)] = 0  # 0: twice the resolution
    no_upscale: bool = False  # small pictures keep their size instead of growing to the resolution


class CleanSettings(_Part):
    """Which files are left out."""

    min_side: Annotated[int, Field(ge=1, le=8192)] = 64  # pixels of the shorter side
    max_megapixels: Annotated[float, Field(gt=0, le=178)] = 89.0  # Pillow's own limit for a decompression bomb
    max_aspect: Annotated[float, Field(ge=1)] = 10.0  # longer side over shorter one: hardly anything of a strip is left after the crop
    near_duplicates: bool = True
    near_distance: Annotated[int, Field(ge=0, le=64)] = 12  # of 256 bits of the perceptual hash: what looks alike, and is compared
    leave_out: tuple[str, ...] = ()  # names of sources, as the report gives them


class CaptionSettings(_Part):
    """Where captions come from and what happens to their tags."""

    source: CaptionSource = "auto"  # the picture's own caption, else tags if there is a tagger, else the instance prompt
    extensions: tuple[str, ...] = (".txt", ".caption")
    prefix: str = ""  # text put after the trigger word of every caption
    suffix: str = ""
    replace: dict[str, str] = {}  # tag -> tag
    remove: tuple[str, ...] = ()
    first: tuple[str, ...] = ()  # these tags, where present, directly after the trigger word
    order: TagOrder = "keep"
    underscores: bool = False  # True keeps long_hair, False writes long hair, in tags of the tagger and of image boards
    separator: TagSeparator = "auto"  # what stands between tags; auto finds image boards' spaces
    trigger_position: TriggerPosition = "front"  # keep: where the caption has it, in front only where it has none

    @field_validator("extensions")
    @classmethod
    def _dotted(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple((e if e.startswith(".") else f".{e}").lower() for e in value)


class TaggerSettings(_Part):
    """A WD-tagger ONNX model in a folder with its ``selected_tags.csv``."""

    model: str  # the .onnx file, or the folder that holds it
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.35
    character_threshold: Annotated[float, Field(gt=0, le=1)] = 0.85
    characters: bool = True
    ratings: bool = False
    blacklist: tuple[str, ...] = ()


class TrainingHints(_Part):
    """What the captions' author wants the trainer to do with them; travels with the dataset."""

    shuffle_caption: bool = False
    keep_tokens: Annotated[int, Field(ge=0, le=255)] = 1  # the trigger word stays in front when tags are shuffled
    caption_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of steps that see an empty caption
    tag_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of tags left out
    flip: bool = False
    wildcards: bool = False  # one of {a|b} and one of several lines is chosen each time, as by kohya's enable_wildcard
    keep_tokens_separator: Annotated[str, Field(max_length=20)] = "|||"  # tags before the first and behind the second one stay in place

    @field_validator("keep_tokens_separator")
    @classmethod
    def _no_tag_separator(cls, value: str) -> str:
        value = value.strip()
        if "," in value or "{" in value or "}" in value:
            raise ValueError("must not contain a comma or braces, which have a meaning in captions already")
        return value


class PrepareSettings(_Part):
    """Everything that determines a prepared dataset beside its source."""

    trigger: Annotated[str, Field(max_length=100)] = ""
    class_description: Annotated[str, Field(max_length=200)] = ""
    resolution: Annotated[int, Field(ge=16, le=4096, multiple_of=8)] = 512
    shape: Shape = "auto"  # buckets for images that are not square; what ``buckets`` says decides where this is not given
    crop: Crop = "top"  # what stays of an image that is larger than its square or bucket
    repeats: Annotated[int, Field(ge=1, le=100_000)] = 1  # times the number in front of a kohya folder's name
    resample: Resample = "lanczos"
    alpha: AlphaMode = "background"
    background: str = "#ffffff"
    upscaler: str = ""  # name of the upscale model given to ``prepare``; a different one makes different pictures
    face_model: str = ""  # optional ONNX face detector for ``crop = "face"``
    regularisation_weight: Annotated[float, Field(ge=0, le=100)] = 1.0
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
        if isinstance(data, dict) and "shape" not in data and "buckets" in data:  # as settings were written before there was a shape
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


def parse_settings(data: dict[str, Any]) -> PrepareSettings:
    """Validate plain data. Raises UserError that lists every problem with its key and the nearest valid one."""
    try:
        return PrepareSettings.model_validate(data)
    except ValidationError as error:
        problems = describe_problems(error, DatasetSetting, list(setting_keys()))
        raise UserError(
            Message("The dataset settings are not valid:\n", problems),
            Message("Every setting is described in ", Action.READ_ABOUT_DATASET_SETTINGS, "."),
            kind="config",
        ) from error


def setting_keys(model: type[BaseModel] = PrepareSettings, prefix: str = "") -> Iterator[str]:
    """Every valid key with its section, for example ``captions.remove``."""
    for name, info in model.model_fields.items():
        inner = [t for t in (info.annotation, *get_args(info.annotation)) if isinstance(t, type) and issubclass(t, BaseModel)]
        if inner:
            yield from setting_keys(inner[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def dataset_folder_name(settings: PrepareSettings) -> str:
    """``<trigger>_<class>``, a valid folder name on Linux and Windows."""
    from ..core.files.paths import safe_name

    parts = [re.sub(r"\s+", " ", part) for part in (settings.trigger, settings.class_description) if part]
    return safe_name("_".join(parts), fallback="dataset")


def dataset_folder(out_root: Path, settings: PrepareSettings) -> Path:
    """Where ``prepare`` writes the dataset."""
    return out_root / dataset_folder_name(settings)
