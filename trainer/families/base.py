"""What a model family is to the rest of the trainer: one small interface, one file a family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .checkpoint import BaseCheckpoint

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Prediction:
    """What a checkpoint's UNet was trained to predict: ``kind`` is ``"epsilon"`` (the noise) or ``"v_prediction"``; a checkpoint may also
    say something else, which is not supported.

    ``zero_terminal_snr``: the last timestep is pure noise (Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are
    Flawed", section 3.1).
    """

    kind: str = "epsilon"
    zero_terminal_snr: bool = False

    @property
    def is_supported(self) -> bool:
        """Whether it can be trained and sampled."""
        return self.kind in ("epsilon", "v_prediction")


EPSILON = Prediction()


@dataclass(frozen=True)
class Framing:
    """How a picture was cut from its source, which SDXL is told (Podell et al. 2023, section 2.2). Sizes are (width, height)."""

    original: tuple[int, int]
    target: tuple[int, int]
    crop_top_left: tuple[int, int] = (0, 0)  # (top, left)


@dataclass(frozen=True)
class TextSettings:
    """How prompts go through a text encoder: ``max_tokens`` (a multiple of 75) are read, and layer ``clip_skip`` from the end is used
    (1: the last; 0: the family's own)."""

    max_tokens: int = 75
    clip_skip: int = 0


PLAIN_TEXT = TextSettings()


class TextEncoder(Protocol):
    """Turns prompts into what the UNet is conditioned on."""

    @property
    def modules(self) -> dict[str, Any]:
        """The text models by what LoRA files call them: ``te1``, for SDXL also ``te2``."""
        ...

    def tokenize(self, prompts: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        """One table of token ids per prompt, on the CPU: what ``conditions`` takes."""
        ...

    def conditions(self, tokens: Sequence[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        """One conditioning per table of tokens, on the encoder's device, with gradients where they are enabled."""
        ...

    def encode(self, prompts: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        """One conditioning per prompt, on the CPU: ``embeds`` of shape (tokens, width), for SDXL also ``pooled`` (width,)."""
        ...

    def count_tokens(self, prompt: str) -> int:
        """Tokens of ``prompt`` without the start and end tokens."""
        ...


class Family(Protocol):
    """A family of checkpoints that share architecture, conditioning and LoRA key names."""

    name: str
    title: str
    latent_scale: float
    text_encoders: tuple[str, ...]  # their folders in a diffusers model
    preset_group: str  # the presets that are made for it, ``"sd15"`` or ``"sdxl"``: see trainer/config
    learning_rate: float  # that works for a LoRA of rank 16 at scale 1 with AdamW

    def recognises(self, checkpoint: BaseCheckpoint) -> bool:
        """Whether ``checkpoint`` belongs to this family (by shapes or configuration; nothing heavy is read)."""
        ...

    def prediction(self, checkpoint: BaseCheckpoint) -> Prediction:
        """What the checkpoint predicts, from its markers, metadata or configuration; it may be something that is not supported."""
        ...

    def read_denoiser(self, checkpoint: BaseCheckpoint, dtype: torch.dtype, *, channels_last: bool = False) -> dict[str, torch.Tensor]:
        """The UNet's tensors in ``dtype`` by their names in the file, convolutions in the memory layout asked for; imports no more
        than torch."""
        ...

    def load_denoiser(self, checkpoint: BaseCheckpoint, dtype: torch.dtype, read: dict[str, torch.Tensor] | None = None) -> nn.Module:
        """The UNet in evaluation mode on the CPU, frozen; ``read``: what ``read_denoiser`` gave for a single file, else it is read here."""
        ...

    def empty_denoiser(self, checkpoint: BaseCheckpoint) -> nn.Module:
        """The UNet on the ``meta`` device: shapes only, for planning."""
        ...

    def load_vae(self, checkpoint: BaseCheckpoint, dtype: torch.dtype) -> nn.Module:
        """The autoencoder in evaluation mode on the CPU, frozen."""
        ...

    def load_text_encoder(
        self, checkpoint: BaseCheckpoint, dtype: torch.dtype, device: torch.device, settings: TextSettings = PLAIN_TEXT
    ) -> TextEncoder:
        """The text encoder (or encoders) with its tokenizer, frozen."""
        ...

    def empty_text_encoder(self, checkpoint: BaseCheckpoint, settings: TextSettings = PLAIN_TEXT) -> TextEncoder:
        """The same on the ``meta`` device: shapes only, for planning."""
        ...

    def token_counter(self, checkpoint: BaseCheckpoint) -> Callable[[str], int]:
        """What counts the tokens of a prompt, without the start and end tokens; nothing heavy is loaded."""
        ...

    def text_settings(self, max_tokens: int, clip_skip: int) -> TextSettings:
        """What a run asks for, as this family does it. Raises UserError for a layer that the family cannot use."""
        ...

    def noise_scheduler(self, prediction: Prediction = EPSILON) -> Any:
        """diffusers' DDPM scheduler with the family's training betas."""
        ...

    def sampling_scheduler(self, prediction: Prediction = EPSILON, *, karras: bool = False) -> Any:
        """diffusers' scheduler for validation images; ``karras``: with Karras' noise levels."""
        ...

    def denoiser_targets(self, unet: nn.Module, targets: str) -> list[str]:
        """Names of the modules of ``unet`` that LoRA adapts."""
        ...

    def text_targets(self, model: nn.Module, targets: str) -> list[str]:
        """Names of the modules of a text model that LoRA adapts."""
        ...

    def denoiser_inputs(
        self, conditions: Sequence[dict[str, torch.Tensor]], framings: Sequence[Framing], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        """Keyword arguments of the UNet's forward for a batch of conditionings, each with its picture's framing."""
        ...

    def empty_condition(self, unet: nn.Module, max_tokens: int = 75) -> dict[str, torch.Tensor]:
        """A conditioning of the right shapes on the ``meta`` device, for planning."""
        ...

    def pipeline(self, checkpoint: BaseCheckpoint, *, dtype: torch.dtype, settings: TextSettings = PLAIN_TEXT) -> Any:
        """A diffusers text-to-image pipeline with everything loaded, for the command line's ``sample``. Raises UserError for ``settings``
        that the text encoder does not allow."""
        ...

    def encoder_of(self, pipeline: Any, settings: TextSettings) -> TextEncoder:
        """The text encoder (or encoders) of ``pipeline``, with whatever LoRA is in them."""
        ...

    def image_to_image(self, pipeline: Any) -> Any:
        """The image-to-image pipeline around the parts of ``pipeline``."""
        ...


def tokenizer_folder() -> Path:
    """Where the CLIP tokenizer that travels with the pack lies."""
    return Path(__file__).parent / "assets" / "clip_tokenizer"
