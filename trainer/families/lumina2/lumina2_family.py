"""The family Lumina 2: Lumina Image 2.0 and the anime models made from it (Neta Lumina, NetaYume Lumina).

A transformer of 2.6 B parameters that flows, with the tokens of Gemma 2 and of the image in one sequence. A checkpoint holds all models, as
ComfyUI saves it, or the transformer alone, with Gemma 2 and Flux' VAE in files beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import UserError
from ...core.messages import Message, Setting
from ..checkpoints.base_checkpoint import BaseCheckpoint, layout_errors
from ..checkpoints.separate_parts import PartKind, SeparatePart, best_part, find_part, open_part
from ..checkpoints.weights_file import WeightsFile
from ..flow_sampling import FlowEuler
from ..interface import NOWHERE, PLAIN_TEXT, Flow, Framing, LatentSpace, TextSettings
from ..prediction import FLOW, Prediction
from . import tensor_layout, text
from .flux_vae import SCALING_FACTOR
from .tokenizer import load_tokenizer, missing_tokenizer, require_sentencepiece

if TYPE_CHECKING:
    import torch
    from torch import nn

FLOWS = Prediction(FLOW)
_FLOW = Flow(timestep_multiplier=1.0, sampling_shift=6.0)  # ComfyUI's shift, and the default of kohya's trainer
_ATTENTION = ("attention.qkv", "attention.out")
_TARGETS = {"attention": _ATTENTION, "all-linear": (*_ATTENTION, "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")}
_MODULATION = ("adaLN_modulation.1",)
_FINAL_LAYER = ("final_layer.linear", "final_layer.adaLN_modulation.1")
_BLOCKS = ("layers.", "noise_refiner.", "context_refiner.")


class Lumina2:
    """The family Lumina 2."""

    name = "lumina2"
    title = "Lumina 2"
    latents = LatentSpace(channels=tensor_layout.LATENT_CHANNELS, downscale=8, scaling_factor=SCALING_FACTOR, multiple=16)
    text_components: tuple[str, ...] = ()  # Gemma 2 is not trained
    preset_group = "lumina2"
    trains_in_fp16 = False  # ComfyUI computes it in bf16 or fp32
    learning_rate = 1e-4  # of the example in kohya's documentation
    beta_schedule: Mapping[str, Any] | None = None
    flow: Flow | None = _FLOW

    def recognises(self, checkpoint: BaseCheckpoint) -> bool:
        """A single file with Lumina 2's transformer."""
        return checkpoint.kind == "file" and tensor_layout.is_lumina2(checkpoint.shapes)

    def with_parts(
        self, checkpoint: BaseCheckpoint, vae: str, text_encoder: str, candidates: Mapping[str, Sequence[Path]] = NOWHERE
    ) -> BaseCheckpoint:
        """Text encoder and VAE are named, or in the checkpoint, or found."""
        shapes = checkpoint.shapes
        own_text, own_vae = tensor_layout.text_prefix(shapes) is not None, tensor_layout.vae_prefix(shapes) is not None
        text_kind, vae_kind = tensor_layout.text_encoder_kind(shapes), tensor_layout.vae_kind()
        text_part = _part(checkpoint, text_encoder, text_kind, candidates.get("text_encoder", ()), own=own_text)
        vae_part = _part(checkpoint, vae, vae_kind, candidates.get("vae", ()), own=own_vae)
        if text_part is None and vae_part is None:
            return checkpoint
        return replace(checkpoint, text_encoder=text_part, vae=vae_part)

    def require_parts(self, checkpoint: BaseCheckpoint) -> None:
        """Raise UserError unless text encoder, tokenizer and VAE are known, and the tokenizer's library is installed."""
        require_sentencepiece()
        shapes = checkpoint.shapes
        if checkpoint.text_encoder is None and tensor_layout.text_prefix(shapes) is None:
            raise _missing(checkpoint, tensor_layout.text_encoder_kind(shapes), "gemma_2_2b_fp16.safetensors")
        if checkpoint.text_encoder is None and tensor_layout.tokenizer_key(shapes) is None:
            raise missing_tokenizer(checkpoint.name)
        if checkpoint.vae is None and tensor_layout.vae_prefix(shapes) is None:
            raise _missing(checkpoint, tensor_layout.vae_kind(), "ae.safetensors")
        with layout_errors(checkpoint.name, "transformer", self.title):
            tensor_layout.denoiser_config(shapes)

    def prediction(self, checkpoint: BaseCheckpoint) -> Prediction:
        """The velocity of a rectified flow."""
        return FLOWS

    def states_prediction(self, checkpoint: BaseCheckpoint) -> bool:
        """The architecture states it: all models of this family flow."""
        return True

    def read_denoiser(self, checkpoint: BaseCheckpoint, dtype: torch.dtype, *, channels_last: bool = False) -> dict[str, torch.Tensor]:
        """The transformer's tensors."""
        wanted = tensor_layout.denoiser_keys(checkpoint.shapes)
        return checkpoint.tensors(lambda key: key in wanted, dtype)

    def load_denoiser(self, checkpoint: BaseCheckpoint, dtype: torch.dtype, read: dict[str, torch.Tensor] | None = None) -> nn.Module:
        """:class:`.denoiser.Lumina2Transformer`, frozen, on the CPU."""
        prefix = tensor_layout.denoiser_prefix(checkpoint.shapes) or ""
        read = self.read_denoiser(checkpoint, dtype) if read is None else read
        denoiser = self.empty_denoiser(checkpoint)
        with layout_errors(checkpoint.name, "transformer", self.title):
            denoiser.load_state_dict({key[len(prefix) :]: value for key, value in read.items()}, assign=True)
        return denoiser.eval().requires_grad_(False)

    def empty_denoiser(self, checkpoint: BaseCheckpoint) -> nn.Module:
        """The transformer on the ``meta`` device."""
        import torch

        from .denoiser import Lumina2Transformer

        with torch.device("meta"), layout_errors(checkpoint.name, "transformer", self.title):
            denoiser: nn.Module = Lumina2Transformer(**tensor_layout.denoiser_config(checkpoint.shapes))
        return denoiser.requires_grad_(False)

    def load_vae(self, checkpoint: BaseCheckpoint, dtype: torch.dtype) -> nn.Module:
        """``diffusers.AutoencoderKL``, frozen, on the CPU."""
        from .flux_vae import load_flux_vae

        vae: nn.Module = load_flux_vae(_file(checkpoint, checkpoint.vae), dtype, self.title)
        return vae

    def encode_images(self, vae: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :func:`.flux_vae.encode_to_latents`."""
        from .flux_vae import encode_to_latents

        return encode_to_latents(vae, pixels)

    def decode_latents(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        """See :func:`.flux_vae.decode_from_latents`."""
        from .flux_vae import decode_from_latents

        return decode_from_latents(vae, latents)

    def load_text_encoder(
        self, checkpoint: BaseCheckpoint, dtype: torch.dtype, device: torch.device, settings: TextSettings = PLAIN_TEXT
    ) -> text.GemmaText:
        """Gemma 2 without its last layer, and its tokenizer."""
        from .gemma import load_for_device

        file = _file(checkpoint, checkpoint.text_encoder)
        gemma = load_for_device(file, dtype, device, self.title)
        return text.GemmaText(gemma, load_tokenizer(file), _read_whole(settings), dtype, device)

    def empty_text_encoder(self, checkpoint: BaseCheckpoint, settings: TextSettings = PLAIN_TEXT) -> text.GemmaText:
        """Gemma 2 on the ``meta`` device, without a tokenizer."""
        import torch

        from .gemma import empty_gemma

        gemma = empty_gemma(_file(checkpoint, checkpoint.text_encoder), self.title)
        return text.GemmaText(gemma, None, _read_whole(settings), torch.float32, torch.device("meta"))

    def token_counter(self, checkpoint: BaseCheckpoint) -> Callable[[str], int]:
        """Tokens with the system prompt and the start token."""
        tokenizer = load_tokenizer(_file(checkpoint, checkpoint.text_encoder))
        return lambda prompt: text.count_tokens(tokenizer, PLAIN_TEXT, prompt)

    def text_settings(self, max_tokens: int, clip_skip: int, empty_prompt: str = "comfyui") -> TextSettings:
        """256 tokens are always read: limits of CLIP have no meaning here. Raises UserError for a clip skip."""
        if clip_skip:
            raise UserError(
                Message(Setting("training.clip_skip"), f" is {clip_skip}, but {self.title}'s text encoder is not CLIP."),
                Message("Set ", Setting("training.clip_skip", 0), "."),
                kind="config",
            )
        return TextSettings(text.ROWS, 0, empty_prompt)

    def sampling_scheduler(self, prediction: Prediction = FLOWS, *, karras: bool = False, shift: float = 0.0) -> FlowEuler:
        """Euler with ComfyUI's noise levels."""
        return FlowEuler(shift or _FLOW.sampling_shift, _FLOW.timestep_multiplier)

    def denoiser_targets(self, denoiser: nn.Module, targets: str, beyond: Collection[str] = ()) -> list[str]:
        """``all-linear``: attention and feed-forward layers of every block and refiner (150 of 26 blocks and 4 refiners); ``attention``:
        qkv and out. Beyond these, the ``modulation`` of every block (28) and the ``final_layer`` (2). kohya's trainer adapts all of them
        unless it is told otherwise."""
        from torch import nn

        if targets not in _TARGETS:
            raise UserError(
                Message(Setting("network.targets"), f" is {targets}, but {self.title} has no convolutions."),
                Message("Set ", Setting("network.targets", "all-linear"), " or attention."),
                kind="config",
            )
        in_blocks = _TARGETS[targets] + (_MODULATION if "modulation" in beyond else ())
        outside = _FINAL_LAYER if "final_layer" in beyond else ()
        linear = (name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear))
        return [name for name in linear if name in outside or (name.startswith(_BLOCKS) and name.endswith(in_blocks))]

    def text_targets(self, model: nn.Module, targets: str) -> list[str]:
        """None: Gemma 2 is not trained."""
        return []

    def denoiser_inputs(
        self, conditions: Sequence[dict[str, torch.Tensor]], framings: Sequence[Framing], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        """``encoder_hidden_states`` (batch, 256, width) and ``encoder_attention_mask`` (batch, 256), True for the rows of each prompt."""
        rows, mask = text.padded([condition["embeds"] for condition in conditions], device, dtype)
        return {"encoder_hidden_states": rows, "encoder_attention_mask": mask}

    def pipeline(self, checkpoint: BaseCheckpoint, *, dtype: torch.dtype, settings: TextSettings = PLAIN_TEXT) -> None:
        """None: diffusers' pipeline has another transformer, and loads no LoRA in kohya's format."""
        return

    def encoder_of(self, pipeline: Any, settings: TextSettings) -> text.GemmaText:
        """The models of ``pipeline.text_encoder`` with these settings."""
        own: text.GemmaText = pipeline.text_encoder
        return text.GemmaText(own.gemma, own.tokenizer, _read_whole(settings), own.dtype, own.device)

    def image_to_image(self, pipeline: Any) -> None:
        """None, as for ``pipeline``."""
        return

    def empty_condition(self, denoiser: nn.Module, max_tokens: int = 75) -> dict[str, torch.Tensor]:
        """``embeds`` of 256 tokens."""
        import torch

        width = int(denoiser.config.text_width)  # type: ignore[union-attr,arg-type]
        return {"embeds": torch.empty(text.ROWS, width, device="meta")}


def _read_whole(settings: TextSettings) -> TextSettings:
    return replace(settings, max_tokens=text.ROWS, clip_skip=0)


def _part(checkpoint: BaseCheckpoint, reference: str, kind: PartKind, candidates: Sequence[Path], *, own: bool) -> SeparatePart | None:
    if reference:
        return open_part(reference, kind)
    return None if own else best_part(candidates, kind) or find_part(checkpoint.path, kind)


def _file(checkpoint: BaseCheckpoint, part: SeparatePart | None) -> WeightsFile:
    return checkpoint.file if part is None else WeightsFile(part.path)


def _missing(checkpoint: BaseCheckpoint, kind: PartKind, example: str) -> UserError:
    folder = kind.folders[0]
    return UserError(
        f"{checkpoint.name} does not hold the {kind.title} that Lumina 2 needs, and no file beside it does.",
        Message(f"Put {example} into ComfyUI's folder models/{folder}, or name the file in ", kind.setting, "."),
        kind="checkpoint",
    )


FAMILY = Lumina2()
