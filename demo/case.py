"""One portrait of the demonstration with all its images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .drawing.portraits import Portrait

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Case:
    """A portrait that was not trained on, with every image of it."""

    portrait: Portrait
    source: Image.Image
    truth: Image.Image
    base: Image.Image
    lora_065: Image.Image
    lora_080: Image.Image
