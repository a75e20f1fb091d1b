"""Demo Pictures: draws portraits to try datasets, training and photo-to-anime without any files."""

from __future__ import annotations

from comfy_api.latest import io

from .shared.failures import canvas_errors
from .shared.files.images import batch
from .shared.schema import field, result, schema

STYLES = {"anime": "anime", "photo-like": "photo", "flat drawing": "flat", "pencil": "pencil"}


class DemoPictures(io.ComfyNode):
    """Schema and call of Demo Pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help."""
        return schema(
            "DemoPictures",
            "Demo Pictures",
            "Draws small portraits of people who do not exist, so that every workflow can be tried without a download. "
            "The demo base has never seen the anime style: a LoRA has to teach it.",
            [
                field(
                    io.Combo,
                    "style",
                    "How the portraits are drawn: anime to train a LoRA on, photo-like to turn into anime.",
                    options=list(STYLES),
                    default="anime",
                ),
                field(io.Int, "count", "How many portraits.", default=16, min=1, max=500),
                field(io.Int, "first", "The number of the first portrait; each number is another person.", default=0, min=0, max=900_000),
                field(io.Int, "size", "Width and height in pixels. The demo base works at 256.", default=256, min=128, max=1024, step=64),
            ],
            [
                result(io.Image, "images", "The portraits, one image for each."),
                result(io.String, "captions", "A description of each portrait, one per line, without words for the style."),
            ],
            search=["demo", "example images", "test dataset"],
        )

    @classmethod
    def execute(cls, style: str, count: int, first: int, size: int) -> io.NodeOutput:
        """Draw the portraits."""
        with canvas_errors():
            from ..demo.drawing.portraits import caption, random_portrait
            from ..demo.drawing.render import render

            people = [random_portrait(number) for number in range(first, first + count)]
            images = [render(person, STYLES[style], size) for person in people]
            return io.NodeOutput(batch(images), "\n".join(caption(person, None) for person in people))
