"""``[validation]``: held-out images, whose loss shows whether a LoRA learns or memorises."""

from __future__ import annotations

from ..setting import setting
from .section import Section


class ValidationSection(Section):
    """Images that are not trained on, and how their loss is measured."""

    share: float = setting(
        0.0,
        "Share of the images to hold out: they are not trained on, and their loss shows when the LoRA starts to memorise. "
        "Try 0.1. 0 holds out none.",
        details="See [Is it still learning?](#is-it-still-learning)",
        why="A dataset for a style is small, and every image held out is missing in training.",
        ge=0,
        le=0.5,
    )
    max_pictures: int = setting(
        16,
        "Holds out at most this many images.",
        why="Each costs `noise_levels` forward passes; 16 give a steady curve.",
        ge=1,
        le=10_000,
    )
    every_epochs: int = setting(
        1,
        "Measures their loss every this many epochs.",
        details="Also before the first step and at the end.",
        why="A point of the curve for each epoch that can be picked.",
        ge=1,
    )
    noise_levels: int = setting(
        4,
        "Number of noise levels at which each held-out image is measured. More give a steadier curve but take longer.",
        details="Timesteps in the middles of that many equal parts.",
        why="Covers composition as well as detail at little cost.",
        ge=1,
        le=100,
    )
    seed: int = setting(
        42,
        "Random seed that selects the held-out images and their noise. Keep it the same to compare runs.",
        why="Separate from the training's seed, so that runs with different seeds can be compared.",
        ge=0,
        le=0xFFFF_FFFF,
    )
