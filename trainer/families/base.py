"""What a model family is to the rest of the trainer: one small interface, one file a family."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch
    from torch import nn


class TextEncoder(Protocol):
    """Turns prompts into what the UNet is conditioned on."""

    def encode(self, prompts: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        """One conditioning per prompt, on the CPU: ``embeds`` of shape (tokens, width)."""
        ...


class Family(Protocol):
    """A family of checkpoints that share architecture, conditioning and LoRA key names."""

    name: str
    title: str
    kohya_version: str
    architecture: str
    prediction_type: str
    latent_scale: float

    def recognises(self, checkpoint: Checkpoint) -> bool:
        """Whether ``checkpoint`` belongs to this family (by shapes or configuration; nothing heavy is read)."""
        ...

    def load_unet(self, checkpoint: Checkpoint, dtype: torch.dtype) -> nn.Module:
        """The UNet in evaluation mode on the CPU, frozen."""
        ...

    def empty_unet(self, checkpoint: Checkpoint) -> nn.Module:
        """The UNet on the ``meta`` device: shapes only, for planning."""
        ...

    def load_vae(self, checkpoint: Checkpoint, dtype: torch.dtype) -> nn.Module:
        """The autoencoder in evaluation mode on the CPU, frozen."""
        ...

    def load_text_encoder(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> TextEncoder:
        """The text encoder (or encoders) with its tokenizer."""
        ...

    def noise_scheduler(self) -> Any:
        """diffusers' DDPM scheduler with the family's training betas."""
        ...

    def sampler(self) -> Any:
        """diffusers' scheduler for validation images."""
        ...

    def lora_targets(self, unet: nn.Module, targets: str) -> list[str]:
        """Names of the modules of ``unet`` that LoRA adapts."""
        ...

    def unet_inputs(self, conditions: Sequence[dict[str, torch.Tensor]], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        """Keyword arguments of the UNet's forward for a batch of conditionings."""
        ...

    def pipeline(self, checkpoint: Checkpoint, *, image_to_image: bool, dtype: torch.dtype) -> Any:
        """A diffusers pipeline with everything loaded, for the command line's ``sample``."""
        ...


def tokenizer_folder() -> Path:
    """Where the CLIP tokenizer that travels with the pack lies."""
    return Path(__file__).parent / "assets" / "clip_tokenizer"
