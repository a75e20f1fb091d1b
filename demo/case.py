"""One portrait of the demonstration and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .drawing.portraits import Portrait

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Case:
    """One portrait that was never trained on, with every picture of it."""

    portrait: Portrait
    source: Image.Image
    truth: Image.Image
    base: Image.Image
    lora_065: Image.Image
    lora_080: Image.Image
