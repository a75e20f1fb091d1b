"""The interface of a model family: everything that the rest of the trainer asks about a kind of model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from .checkpoints.base_checkpoint import BaseCheckpoint
from .prediction import DIFFUSION, EPSILON, FLOW, Prediction

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class LatentSpace:
    """The latents that a family's denoiser works on: ``channels``, pixels per latent along each side (``downscale``), and the factor that
    brings the autoencoder's output to about unit variance (``scaling_factor``).

    Sides of images are multiples of ``multiple`` pixels, and at most ``largest`` (0: any size).
    """

    channels: int
    downscale: int
    scaling_factor: float
    multiple: int = 8
    largest: int = 0

    def shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(channels, rows, columns) of the latent of an image of ``width`` by ``height`` pixels."""
        return self.channels, height // self.downscale, width // self.downscale


@dataclass(frozen=True)
class Flow:
    """How a family's denoiser takes a rectified flow. It is given the noise level in 0..1 times ``timestep_multiplier``.

    ``sampling_shift``: how far the noise levels of validation images are shifted towards noise, as ComfyUI shifts them; ``resolution``: the
    side of the square image, in pixels, at which the resolution-dependent shift of training is 1.
    """

    timestep_multiplier: float
    sampling_shift: float = 3.0
    resolution: int = 1024


@dataclass(frozen=True)
class Framing:
    """How an image was cropped from its source; SDXL is conditioned on it (Podell et al. 2023, section 2.2). Sizes are (width, height)."""

    original: tuple[int, int]
    target: tuple[int, int]
    crop_top_left: tuple[int, int] = (0, 0)  # (top, left)


NOWHERE: Mapping[str, Sequence[Path]] = MappingProxyType({})
TEXT_CHUNK = 75  # tokens that CLIP encodes at a time, between a start and an end token


@dataclass(frozen=True)
class TextSettings:
    """How prompts are encoded: the first ``max_tokens`` tokens (a multiple of 75) are read, and the hidden states of layer ``clip_skip``
    from the end are used (1: the last layer; 0: the family's default). ``empty_prompt``: see ``training.empty_prompt``.

    ``part``: which part of the text encoder is used. Where it ends in an adapter, and only that is trained, the ``front`` before it encodes
    prompts once, and what it makes of them is the input of the adapter, the ``back``.
    """

    max_tokens: int = TEXT_CHUNK
    clip_skip: int = 0
    empty_prompt: str = "comfyui"
    part: Literal["whole", "front", "back"] = "whole"

    @property
    def in_training(self) -> TextSettings:
        """Those of the part that is trained, if prompts are cached with these."""
        return replace(self, part="back") if self.part == "front" else self

    def covering(self, tokens: int) -> TextSettings:
        """These settings with enough chunks for prompts of so many tokens."""
        return replace(self, max_tokens=max(self.max_tokens, -(-tokens // TEXT_CHUNK) * TEXT_CHUNK))


PLAIN_TEXT = TextSettings()


class TextEncoder(Protocol):
    """Turns prompts into the conditioning of the denoiser."""

    @property
    def modules(self) -> dict[str, Any]:
        """The text models by their names in LoRA files (see ``Family.text_components``), those of the part that is used."""
        ...

    def tokenize(self, prompts: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        """Token ids of each prompt by text model, on the CPU: the input of ``conditions``."""
        ...

    def conditions(self, tokens: Sequence[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        """The conditioning of each prompt, on the encoder's device. Gradients flow where they are enabled.

        The ``back`` part takes what the ``front`` part's ``encode`` returned in place of token ids.
        """
        ...

    def longest_input(self) -> dict[str, torch.Tensor]:
        """One input of ``conditions`` of the largest size, on the ``meta`` device, for planning."""
        ...

    def encode(self, prompts: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        """The conditioning of each prompt on the CPU: ``embeds`` (tokens, width), for SDXL also ``pooled`` (width,); of the ``front`` part
        the input of the ``back``."""
        ...

    def apply_weights(
        self, parts: Sequence[tuple[str, float]], row: dict[str, torch.Tensor], empty: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """``row``, the conditioning of a prompt, with the weights of its ``parts`` as ComfyUI applies them; ``empty`` is that of the empty
        prompt. All in fp32 on the CPU."""
        ...

    def count_tokens(self, prompt: str) -> int:
        """Number of tokens in ``prompt``, without the start and end tokens."""
        ...


class Family(Protocol):
    """A family of base checkpoints with the same architecture, conditioning and names in LoRA files.

    A model is a denoiser (a UNet or a transformer), one or more text encoders and an autoencoder.
    """

    name: str
    title: str
    latents: LatentSpace
    text_components: tuple[str, ...]  # its text models by their names in LoRA files: ``te1``, ``te2``, ``adapter`` (behind the encoder)
    preset_group: str  # the presets in trainer/config that are made for it: ``"sd15"``, ``"sdxl"``, ``"anima"``, ``"lumina2"``
    trains_in_fp16: bool  # False: its values overflow in fp16
    learning_rate: float  # suits a LoRA of rank 16 at scale 1 with AdamW
    beta_schedule: Mapping[str, Any] | None  # of its diffusion, as diffusers' schedulers name it; None: it is not trained as a diffusion
    flow: Flow | None  # of its rectified flow; None: it is not trained as one

    def recognises(self, checkpoint: BaseCheckpoint) -> bool:
        """Whether ``checkpoint`` belongs to this family, judged by tensor shapes or configuration without reading weights."""
        ...

    def with_parts(
        self, checkpoint: BaseCheckpoint, vae: str, text_encoder: str, candidates: Mapping[str, Sequence[Path]] = NOWHERE
    ) -> BaseCheckpoint:
        """``checkpoint`` with the VAE and the text encoder in these files in place of its own.

        Where a name is empty, a part that the checkpoint lacks is searched among ``candidates`` (files by the part's name, ``"vae"`` or
        ``"text_encoder"``), then beside the checkpoint; one that is not found stays None. Raises UserError for a file that is not such a
        part.
        """
        ...

    def require_parts(self, checkpoint: BaseCheckpoint) -> None:
        """Raise UserError unless the denoiser, the autoencoder and the text encoders are all present and readable."""
        ...

    def prediction(self, checkpoint: BaseCheckpoint) -> Prediction:
        """What the checkpoint predicts, according to its marker tensors, metadata or configuration. It may be unsupported."""
        ...

    def states_prediction(self, checkpoint: BaseCheckpoint) -> bool:
        """Whether the checkpoint states its prediction at all, so that ``prediction`` is no assumption."""
        ...

    def read_denoiser(self, checkpoint: BaseCheckpoint, dtype: torch.dtype, *, channels_last: bool = False) -> dict[str, torch.Tensor]:
        """The denoiser's tensors of a single file, in ``dtype``, by their names in the file. ``channels_last`` sets the memory format of
        convolution weights. Imports no library but torch, so that it can run while the others are imported."""
        ...

    def load_denoiser(self, checkpoint: BaseCheckpoint, dtype: torch.dtype, read: dict[str, torch.Tensor] | None = None) -> nn.Module:
        """The frozen denoiser in evaluation mode on the CPU. ``read`` is the result of ``read_denoiser``, if that was called already."""
        ...

    def empty_denoiser(self, checkpoint: BaseCheckpoint) -> nn.Module:
        """The denoiser on the ``meta`` device, for planning."""
        ...

    def load_vae(self, checkpoint: BaseCheckpoint, dtype: torch.dtype) -> nn.Module:
        """The frozen autoencoder in evaluation mode on the CPU."""
        ...

    def encode_images(self, vae: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the latents of ``pixels`` (batch, 3, height, width) in -1..1, at about unit variance, each
        (batch, channels, rows, columns)."""
        ...

    def decode_latents(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        """The images (batch, 3, height, width), about -1..1, of ``latents`` (batch, channels, rows, columns)."""
        ...

    def load_text_encoder(
        self, checkpoint: BaseCheckpoint, dtype: torch.dtype, device: torch.device, settings: TextSettings = PLAIN_TEXT
    ) -> TextEncoder:
        """The frozen text encoder (or encoders) with its tokenizer."""
        ...

    def empty_text_encoder(self, checkpoint: BaseCheckpoint, settings: TextSettings = PLAIN_TEXT) -> TextEncoder:
        """The text encoder on the ``meta`` device and without a tokenizer, for planning."""
        ...

    def token_counter(self, checkpoint: BaseCheckpoint) -> Callable[[str], int]:
        """A function that counts the tokens of a prompt without the start and end tokens. No model is loaded."""
        ...

    def text_settings(self, max_tokens: int, clip_skip: int, empty_prompt: str = "comfyui") -> TextSettings:
        """The text settings of a run, normalised for this family: what has no meaning here is left at its default.

        Raises UserError for a layer that the family cannot use.
        """
        ...

    def sampling_scheduler(self, prediction: Prediction = EPSILON, *, karras: bool = False, shift: float = 0.0) -> Any:
        """The scheduler for validation images: diffusers', or for a flow ``FlowEuler``. ``karras`` selects Karras' noise levels for a
        diffusion; ``shift`` shifts those of a flow (0: the family's ``sampling_shift``)."""
        ...

    def denoiser_targets(self, denoiser: nn.Module, targets: str, beyond: Collection[str] = ()) -> list[str]:
        """Names of the modules of ``denoiser`` that get an adapter. ``targets`` is a value of ``network.targets``, and ``beyond`` are the
        kinds of layers besides these, by their settings: ``modulation``, ``final_layer``. Raises UserError for what the family lacks."""
        ...

    def text_targets(self, model: nn.Module, targets: str) -> list[str]:
        """Names of the modules of a text model that get an adapter."""
        ...

    def denoiser_inputs(
        self, conditions: Sequence[dict[str, torch.Tensor]], framings: Sequence[Framing], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        """Keyword arguments of the denoiser's forward pass for a batch of conditionings and the framing of each image."""
        ...

    def empty_condition(self, denoiser: nn.Module, max_tokens: int = 75) -> dict[str, torch.Tensor]:
        """The conditioning of one prompt on the ``meta`` device, for planning."""
        ...

    def pipeline(self, checkpoint: BaseCheckpoint, *, dtype: torch.dtype, settings: TextSettings = PLAIN_TEXT) -> Any:
        """A diffusers text-to-image pipeline with everything loaded, for the command ``sample``; None where diffusers has none for this
        family's files. Raises UserError for ``settings`` that the text encoder cannot use."""
        ...

    def encoder_of(self, pipeline: Any, settings: TextSettings) -> TextEncoder:
        """The text encoder (or encoders) of ``pipeline``, or of a family without one, of an object with its ``text_encoder``; including any
        LoRA on it."""
        ...

    def image_to_image(self, pipeline: Any) -> Any:
        """An image-to-image pipeline that shares the models of ``pipeline``."""
        ...


def supported_predictions(family: Family) -> tuple[str, ...]:
    """The kinds of ``Prediction`` that a LoRA for ``family`` can be trained for."""
    diffusion = () if family.beta_schedule is None else DIFFUSION
    return diffusion if family.flow is None else (*diffusion, FLOW)
