"""The plan of a run, as the trainer works it out, the dry run prints it and the event log keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import StrictBool, StrictInt, StrictStr

from .json_types import Number


@dataclass(frozen=True)
class RunPlan:
    """What a run will do and need. ``buckets`` maps ``"512x512"`` to a number of images, repeats included."""

    images: StrictInt
    buckets: dict[str, StrictInt]
    epochs: StrictInt
    steps: StrictInt
    steps_per_epoch: StrictInt
    trainable_parameters: StrictInt
    modules: StrictInt
    family: StrictStr
    device: StrictStr
    precision: StrictStr
    memory_gb: Number
    start_step: StrictInt = 0
    prediction: StrictStr = "epsilon"
    held_out: StrictInt = 0  # images that are not trained on
    memory: dict[str, Number] = field(default_factory=dict)  # the parts of memory_gb, see memory_estimate.py
    attention: StrictStr = "sdpa"
    prepacked: StrictBool = False  # layers of the base are packed for the CPU, see compute/onednn/
    cuda_graphs: StrictBool = False  # forward and backward passes are captured, see compute/cuda_graphs/
    fused: StrictBool = False  # blocks of the UNet, see compute/fused_blocks/
    swappable_blocks: StrictInt = 0  # of the denoiser on this device, see compute/swapped_blocks/
    text_encoder: StrictStr = ""  # the file of a model that has its text encoder in one of its own
    vae: StrictStr = ""  # the file of the VAE, if it is not the checkpoint's own
    latents: StrictStr = ""  # how they are scaled, for a model whose kind does not determine it
    regularisation: StrictStr = ""  # a sentence about the share of regularisation images; empty without any
