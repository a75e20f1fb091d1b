"""The sections of the dataset settings: buckets, cleaning, captions, tagger, and what travels to training."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from .sections.section import Section
from .setting import required, setting

CaptionSource = Literal["auto", "instance", "sidecar", "tags", "sidecar+tags"]
TagOrder = Literal["keep", "alphabetical", "frequency"]
TagSeparator = Literal["auto", "comma", "space"]
TriggerPosition = Literal["front", "keep"]


class BucketSettings(Section):
    """Aspect-ratio buckets by kohya's rules."""

    step: int = setting(64, "With buckets: sides are multiples of this.", why="kohya's `bucket_reso_steps`.", ge=8, le=512, multiple_of=8)
    min_side: int = setting(
        0,
        "With buckets: the shortest side in pixels. 0 chooses it by the resolution.",
        details="`0`: 256, or half the resolution below 512.",
        why="kohya's 256, with smaller resolutions allowed.",
        ge=0,
        le=8192,
    )
    max_side: int = setting(
        0,
        "With buckets: the longest side in pixels. 0 chooses it by the resolution.",
        details="`0`: twice the resolution.",
        why="kohya's 1024 at 512 pixels, and in proportion.",
        ge=0,
        le=8192,
    )
    no_upscale: bool = setting(
        False,
        "With buckets: small images keep their size instead of being enlarged.",
        why="Models learn best at the size they are trained at.",
    )


class CleanSettings(Section):
    """Which images are left out."""

    min_side: int = setting(
        64, "Leaves out images whose shorter side is below this, in pixels.", why="Smaller ones are icons.", ge=1, le=8192
    )
    max_megapixels: float = setting(
        89.0,
        "Leaves out images with more megapixels than this.",
        details="Larger files may be decompression bombs.",
        why="Pillow's own limit.",
        gt=0,
        le=178,
    )
    max_aspect: float = setting(
        10.0,
        "Leaves out strips that are more than this many times as long as they are wide.",
        details="Or as high.",
        why="A crop keeps hardly anything of a longer strip.",
        ge=1,
    )
    near_duplicates: bool = setting(
        True, "Leaves out images that look almost like another one.", why="Copies make training memorise what they show."
    )
    near_distance: int = setting(
        12,
        "How alike two images must look to be compared in detail; only certain copies are left out. Higher compares more pairs.",
        details="Bits of 256 in which their perceptual hashes differ.",
        why="Finds copies that were saved again or resized, at little cost.",
        ge=0,
        le=64,
    )
    leave_out: tuple[str, ...] = setting(
        (), "Names of images to leave out, as the report shows them.", why="The rules above leave out what is certain."
    )


class CaptionSettings(Section):
    """Where captions come from and what happens to their tags."""

    source: CaptionSource = setting(
        "auto",
        "Where captions come from: text files beside the images if there are any (auto), text files for every image (sidecar), "
        "or only the trigger word and class (instance).",
        details="With a tagger also `tags` (the tagger's alone) and `sidecar+tags` (both); see [Captions](#captions).",
        why="Uses what is there.",
    )
    extensions: tuple[str, ...] = setting(
        (".txt", ".caption"), "Extensions of caption files beside the images.", why="kohya's two usual extensions."
    )
    prefix: str = setting("", "Text to add to every caption after the trigger word.", why="Captions stay as they are.")
    suffix: str = setting("", "Text to add to the end of every caption.", why="Captions stay as they are.")
    replace: dict[str, str] = setting({}, "Renames tags.", why="Captions stay as they are.")
    remove: tuple[str, ...] = setting(
        (),
        "Removes these tags from every caption. A star stands for any text: *_hair removes blonde_hair and long_hair.",
        why="Captions stay as they are.",
    )
    first: tuple[str, ...] = setting(
        (), "Moves these tags, where present, directly behind the trigger word.", why="Captions stay as they are."
    )
    order: TagOrder = setting(
        "keep",
        "Order of the other tags: unchanged (keep), alphabetical, or most frequent first (frequency).",
        why="Captions stay as they are.",
    )
    underscores: bool = setting(
        False,
        "Keeps underscores in tags of the tagger and of image boards: long_hair instead of long hair.",
        why="Anime models are prompted with spaces.",
    )
    separator: TagSeparator = setting(
        "auto",
        "What separates the tags of a caption. auto recognises lists with spaces, as image boards write them.",
        why="Recognises both.",
    )
    trigger_position: TriggerPosition = setting(
        "front",
        "Position of the trigger word: in front of every caption (front), or where the caption already has it (keep).",
        details="With `keep` it comes in front only of captions without it.",
        why="A fixed position is learned best.",
    )

    @field_validator("extensions")
    @classmethod
    def _dotted(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple((e if e.startswith(".") else f".{e}").lower() for e in value)


class TaggerSettings(Section):
    """A WD-tagger ONNX model in a folder with its ``selected_tags.csv``."""

    model: str = required(
        "A WD tagger that writes tags for you: an .onnx file with selected_tags.csv beside it.",
        details="The file or its folder. It needs the package onnxruntime.",
    )
    threshold: float = setting(
        0.35,
        "How certain the tagger must be of a tag. Lower values give more tags.",
        why="The value of the WD taggers' own demo.",
        gt=0,
        le=1,
    )
    character_threshold: float = setting(
        0.85,
        "How certain the tagger must be of a character's name.",
        why="The value of the WD taggers' own demo; a wrong name does more harm than a missing one.",
        gt=0,
        le=1,
    )
    characters: bool = setting(True, "Writes the names of characters that the tagger recognises.", why="Names are useful tags.")
    ratings: bool = setting(False, "Writes the tagger's rating of each image.", why="Ratings describe no visible detail.")
    blacklist: tuple[str, ...] = setting((), "Tags that the tagger must never write.", why="The thresholds decide.")


class TrainingHints(Section):
    """What the author of the captions wants the trainer to do with them; part of the dataset."""

    shuffle_caption: bool = setting(
        False, "Shuffles the tags in every training step, so that their order means nothing.", why="Captions may be sentences."
    )
    keep_tokens: int = setting(
        1,
        "Number of tags in front that are never shuffled or dropped.",
        why="Keeps the trigger word in front.",
        ge=0,
        le=255,
    )
    caption_dropout: float = setting(
        0.0,
        "Share of training steps without a caption. The style then also appears without its trigger word.",
        why="Off: the trigger word keeps control.",
        ge=0,
        le=1,
    )
    tag_dropout: float = setting(0.0, "Share of the tags to leave out in every step.", why="Off, as in kohya's trainer.", ge=0, le=1)
    flip: bool = setting(
        False,
        "Also trains on mirrored images. Not for characters with something on one side only.",
        details="Images are mirrored at random.",
        why="Mirroring would blur such details.",
    )
    wildcards: bool = setting(
        False,
        "Picks one of several lines of a caption, and one of several words in braces, each time an image is shown.",
        details="As kohya's `enable_wildcard`: `{red|blue} hair`.",
        why="Braces may be meant as text.",
    )
    keep_tokens_separator: str = setting(
        "|||",
        "Marks the tags that stay in place: those before the first mark and behind the second one are never moved.",
        details="Empty: no mark has a meaning.",
        why="kohya's usual mark.",
        max_length=20,
    )

    @field_validator("keep_tokens_separator")
    @classmethod
    def _no_tag_separator(cls, value: str) -> str:
        value = value.strip()
        if "," in value or "{" in value or "}" in value:
            raise ValueError("must not contain a comma or braces, which already have a meaning in captions")
        return value
