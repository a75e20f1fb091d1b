"""LoRAs for Lumina 2 in memory, with the sizes of its layers."""

from __future__ import annotations

from random_checkpoints.lumina2 import DENOISER, SIZES, layout
from trainer.lorafile import LoraWeights

from .random_lora import random_lora

METADATA = {"ss_output_name": "sample", "ss_base_model_version": "lumina2", "modelspec.architecture": "lumina-2/lora"}


def lumina2_sizes() -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of the layers that kohya's trainer adapts, of the full-size model by name: 180 in blocks, 2 in the last layer."""
    kinds = (".attention.", ".feed_forward.", ".adaLN_modulation.", "final_layer.")
    shapes = {key.removeprefix(DENOISER): shape for key, shape in layout(SIZES["full"]).items() if key.startswith(DENOISER)}
    weights = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith(".weight") and len(shape) == 2}
    return {name: (shape[0], shape[1]) for name, shape in weights.items() if any(kind in f".{name}" for kind in kinds)}


def sample(sizes: dict[str, tuple[int, int]], algorithm: str = "lora", *, rank: int = 2, alpha: float = 1.0) -> LoraWeights:
    """A random LoRA in fp16; ``algorithm`` is lora, lokr or dora."""
    return random_lora({("unet", name): size for name, size in sizes.items()}, algorithm, "lumina2", METADATA, rank=rank, alpha=alpha)


def one_block() -> dict[str, tuple[int, int]]:
    """The sizes of one block of each kind and of the last layer."""
    return {name: size for name, size in lumina2_sizes().items() if ".0." in name or name.startswith("final_layer")}
