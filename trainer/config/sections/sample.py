"""``[sample]``: validation images before the first step and after each epoch, with fixed seeds."""

from __future__ import annotations

from typing import Any

from pydantic import field_validator

from ..sample_prompts import read_prompt
from ..setting import setting
from .section import Section


class SampleSection(Section):
    """What the validation images show and how they are sampled."""

    prompts: tuple[str, ...] = setting(
        (),
        "Makes a validation image for each prompt before training and after every epoch, so that you can watch it learn.",
        details="Include the trigger word. Brackets mean what they mean on the canvas: `(word:1.2)` weighs a word, `\\(` is a bracket. "
        "A prompt may bring [settings of its own](#validation-prompts).",
        why="Only you know the trigger word.",
    )
    negative: str = setting("", "What the validation images should not show.", why="Shows the LoRA itself, without correction.")
    steps: int = setting(
        20, "Sampling steps of each validation image.", why="DPM++ 2M, the sampler used, has nearly converged at 20.", ge=1, le=1000
    )
    guidance: float = setting(
        7.5, "How closely the validation images follow their prompt (CFG).", why="Stable Diffusion's usual value.", ge=0, le=100
    )
    seed: int = setting(
        42,
        "Random seed of the validation images.",
        why="The same for every epoch, so that the images differ only by what was learned.",
        ge=0,
        le=0xFFFF_FFFF,
    )
    every_epochs: int = setting(
        1,
        "Makes validation images every this many epochs, and saves the LoRA of that moment with them. 0 makes none.",
        details="The LoRA is in `checkpoints`, without a state to resume from, unless one is due.",
        why="Every epoch can be seen, and the best one used.",
        ge=0,
    )
    width: int = setting(
        0,
        "Width of the validation images. 0 uses the dataset's resolution.",
        details="A multiple of 8.",
        why="Models sample best at the size they are trained at.",
        ge=0,
        le=8192,
    )
    height: int = setting(
        0,
        "Height of the validation images. 0 uses the dataset's resolution.",
        details="A multiple of 8.",
        why="Models sample best at the size they are trained at.",
        ge=0,
        le=8192,
    )

    shift: float = setting(
        0.0,
        "For rectified flows: the shift that the validation images are sampled with, as in ModelSamplingSD3. 0 uses the model's usual one.",
        details="Use the value that you sample with; SDXL's flows usually take 3.",
        why="3, ComfyUI's default for these models.",
        ge=0,
        le=100,
    )

    @field_validator("prompts", mode="before")
    @classmethod
    def _one_prompt_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("prompts")
    @classmethod
    def _flags_have_values(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for prompt in value:
            read_prompt(prompt)
        return value

    @field_validator("width", "height")
    @classmethod
    def _multiple_of_eight(cls, value: int) -> int:
        if value % 8:
            raise ValueError(f"must be a multiple of 8 (the VAE's factor), for example {value // 8 * 8 or 8}")
        return value
