"""The family Lumina 2: Lumina Image 2.0 and the anime models made from it (Neta Lumina, NetaYume Lumina).

A transformer of 2.6 B parameters that flows, with the tokens of Gemma 2 and of the image in one sequence. A checkpoint holds all models, as
ComfyUI saves it, or the transformer alone, with Gemma 2 and Flux' VAE in files beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ..checkpoints.base_checkpoint import BaseCheckpoint, layout_errors
from ..flow_transformer import FlowTransformer, TensorLayout, file_of
from ..interface import PLAIN_TEXT, Flow, Framing, LatentSpace, TextSettings
from . import tensor_layout, text
from .flux_vae import SCALING_FACTOR
from .tokenizer import load_tokenizer, missing_tokenizer, require_sentencepiece

if TYPE_CHECKING:
    import torch
    from torch import nn

_ATTENTION = ("attention.qkv", "attention.out")


class Lumina2(FlowTransformer):
    """The family Lumina 2."""

    name = "lumina2"
    title = "Lumina 2"
    latents = LatentSpace(channels=tensor_layout.LATENT_CHANNELS, downscale=8, scaling_factor=SCALING_FACTOR, multiple=16)
    text_components: tuple[str, ...] = ()  # Gemma 2 is not trained
    preset_group = "lumina2"
    trains_in_fp16 = False  # ComfyUI computes it in bf16 or fp32
    learning_rate = 1e-4  # of the example in kohya's documentation
    beta_schedule: Mapping[str, Any] | None = None
    flow: Flow | None = Flow(timestep_multiplier=1.0, sampling_shift=6.0)  # ComfyUI's shift, and the default of kohya's trainer
    layout: ClassVar[TensorLayout] = tensor_layout
    text_rows = text.ROWS
    examples = ("gemma_2_2b_fp16.safetensors", "ae.safetensors")
    # all-linear are 150 layers of 26 blocks and 4 refiners; kohya's trainer also adapts modulation (28) and the final layer (2)
    targets: ClassVar = {"attention": _ATTENTION, "all-linear": (*_ATTENTION, "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")}
    modulation = ("adaLN_modulation.1",)
    final_layer = ("final_layer.linear", "final_layer.adaLN_modulation.1")
    blocks = ("layers.", "noise_refiner.", "context_refiner.")

    def recognises(self, checkpoint: BaseCheckpoint) -> bool:
        """A single file with Lumina 2's transformer."""
        return checkpoint.kind == "file" and tensor_layout.is_lumina2(checkpoint.shapes)

    def require_parts(self, checkpoint: BaseCheckpoint) -> None:
        """Raise UserError unless text encoder, tokenizer and VAE are known, and the tokenizer's library is installed."""
        require_sentencepiece()
        self.require_text_encoder(checkpoint)
        if checkpoint.text_encoder is None and tensor_layout.tokenizer_key(checkpoint.shapes) is None:
            raise missing_tokenizer(checkpoint.name)
        self.require_vae(checkpoint)
        with layout_errors(checkpoint.name, "transformer", self.title):
            tensor_layout.denoiser_config(checkpoint.shapes)

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

        vae: nn.Module = load_flux_vae(file_of(checkpoint, checkpoint.vae), dtype, self.title)
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

        file = file_of(checkpoint, checkpoint.text_encoder)
        gemma = load_for_device(file, dtype, device, self.title)
        return text.GemmaText(gemma, load_tokenizer(file), self.read_whole(settings), dtype, device)

    def empty_text_encoder(self, checkpoint: BaseCheckpoint, settings: TextSettings = PLAIN_TEXT) -> text.GemmaText:
        """Gemma 2 on the ``meta`` device, without a tokenizer."""
        import torch

        from .gemma import empty_gemma

        gemma = empty_gemma(file_of(checkpoint, checkpoint.text_encoder), self.title)
        return text.GemmaText(gemma, None, self.read_whole(settings), torch.float32, torch.device("meta"))

    def token_counter(self, checkpoint: BaseCheckpoint) -> Callable[[str], int]:
        """Tokens with the system prompt and the start token."""
        tokenizer = load_tokenizer(file_of(checkpoint, checkpoint.text_encoder))
        return lambda prompt: text.count_tokens(tokenizer, PLAIN_TEXT, prompt)

    def text_targets(self, model: nn.Module, targets: str) -> list[str]:
        """None: Gemma 2 is not trained."""
        return []

    def denoiser_inputs(
        self, conditions: Sequence[dict[str, torch.Tensor]], framings: Sequence[Framing], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        """``encoder_hidden_states`` (batch, 256, width) and ``encoder_attention_mask`` (batch, 256), True for the rows of each prompt."""
        rows, mask = text.padded([condition["embeds"] for condition in conditions], device, dtype)
        return {"encoder_hidden_states": rows, "encoder_attention_mask": mask}

    def encoder_of(self, pipeline: Any, settings: TextSettings) -> text.GemmaText:
        """The models of ``pipeline.text_encoder`` with these settings."""
        own: text.GemmaText = pipeline.text_encoder
        return text.GemmaText(own.gemma, own.tokenizer, self.read_whole(settings), own.dtype, own.device)

    def empty_condition(self, denoiser: nn.Module, max_tokens: int = 75) -> dict[str, torch.Tensor]:
        """``embeds`` of 256 tokens."""
        import torch

        width = int(denoiser.config.text_width)  # type: ignore[union-attr,arg-type]
        return {"embeds": torch.empty(text.ROWS, width, device="meta")}


FAMILY = Lumina2()
