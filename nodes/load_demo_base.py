"""Load Demo Base: load the small model that comes with the pack, or any small checkpoint with the same layout."""

from __future__ import annotations

from comfy_api.latest import io

from .shared.comfyui.small_checkpoint import load_small_checkpoint
from .shared.failures import canvas_errors
from .shared.files.folders import DEMO_BASE, checkpoint_names, checkpoint_path
from .shared.schema import field, result, schema


class LoadDemoBase(io.ComfyNode):
    """Schema and call of Load Demo Base."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help."""
        return schema(
            "LoadDemoBase",
            "Load Demo Base",
            "Loads the small model that comes with AnimeLoRA, so that you can try every workflow without a download. "
            "It draws small portraits (256 px). For real images, use Load Checkpoint.",
            [
                field(
                    io.Combo,
                    "checkpoint",
                    "The embedded demo model, or a checkpoint from your list with the layout of Stable Diffusion 1.x (of any width).",
                    options=checkpoint_names(),
                    default=DEMO_BASE,
                )
            ],
            [
                result(io.Model, "model", "The demo model, for a sampler."),
                result(io.Clip, "clip", "The text encoder."),
                result(io.Vae, "vae", "The VAE of the demo model."),
            ],
            search=["demo", "small checkpoint", "embedded base"],
        )

    @classmethod
    def execute(cls, checkpoint: str) -> io.NodeOutput:
        """MODEL, CLIP and VAE."""
        with canvas_errors():
            return io.NodeOutput(*load_small_checkpoint(checkpoint_path(checkpoint)))
