"""The family Anima: a Cosmos-Predict2 transformer of 2 B parameters that flows, conditioned on Qwen3 through an adapter over T5 tokens.

The base model, its previews and fine-tunes, and versions with more blocks belong to it; sizes follow from the shapes of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ..checkpoints.base_checkpoint import BaseCheckpoint, layout_errors
from ..flow_transformer import FlowTransformer, TensorLayout, file_of
from ..interface import PLAIN_TEXT, Flow, Framing, LatentSpace, TextSettings
from . import tensor_layout, text
from .libraries import require_libraries

if TYPE_CHECKING:
    import torch
    from torch import nn

_ATTENTION = tuple(f"{name}.{part}" for name in ("attn1", "attn2") for part in ("to_q", "to_k", "to_v", "to_out.0"))


class Anima(FlowTransformer):
    """The family Anima."""

    name = "anima"
    title = "Anima"
    latents = LatentSpace(channels=16, downscale=8, scaling_factor=1.0, multiple=16, largest=2048)
    text_components: tuple[str, ...] = ("te1", "adapter")
    preset_group = "anima"
    trains_in_fp16 = False  # the residual stream is too large; ComfyUI keeps it in fp32
    learning_rate = 1e-4  # of the trainers that ship presets at scale 1
    beta_schedule: Mapping[str, Any] | None = None
    flow: Flow | None = Flow(timestep_multiplier=1.0, sampling_shift=3.0)
    layout: ClassVar[TensorLayout] = tensor_layout
    text_rows = text.ROWS
    examples = ("qwen_3_06b_base.safetensors", "qwen_image_vae.safetensors")
    # all-linear is kohya's set, 280 layers of 28 blocks; modulation are 168 more and the final layer 3
    targets: ClassVar = {"attention": _ATTENTION, "all-linear": (*_ATTENTION, "ff.net.0.proj", "ff.net.2")}
    modulation = tuple(f"norm{place}.linear_{part}" for place in (1, 2, 3) for part in (1, 2))
    final_layer = ("norm_out.linear_1", "norm_out.linear_2", "proj_out")
    blocks = ("transformer_blocks.",)

    def recognises(self, checkpoint: BaseCheckpoint) -> bool:
        """A single file with a Cosmos-Predict2 transformer and Anima's text adapter."""
        return checkpoint.kind == "file" and tensor_layout.has_adapter(checkpoint.shapes)

    def require_parts(self, checkpoint: BaseCheckpoint) -> None:
        """Raise UserError unless text encoder and VAE are known, and the libraries are new enough for this family."""
        require_libraries()
        self.require_text_encoder(checkpoint)
        self.require_vae(checkpoint)
        with layout_errors(checkpoint.name, "transformer", self.title):
            tensor_layout.denoiser_config(checkpoint.shapes)
            tensor_layout.adapter_config(checkpoint.shapes)

    def load_denoiser(self, checkpoint: BaseCheckpoint, dtype: torch.dtype, read: dict[str, torch.Tensor] | None = None) -> nn.Module:
        """``diffusers.CosmosTransformer3DModel`` for images, frozen, on the CPU."""
        from diffusers.loaders.single_file_utils import convert_cosmos_transformer_checkpoint_to_diffusers

        prefix = tensor_layout.denoiser_prefix(checkpoint.shapes) or ""
        read = self.read_denoiser(checkpoint, dtype) if read is None else read
        denoiser = self.empty_denoiser(checkpoint)
        with layout_errors(checkpoint.name, "transformer", self.title):
            named = convert_cosmos_transformer_checkpoint_to_diffusers({key[len(prefix) :]: value for key, value in read.items()})
            denoiser.load_state_dict(named, assign=True)
        return denoiser.eval().requires_grad_(False)

    def empty_denoiser(self, checkpoint: BaseCheckpoint) -> nn.Module:
        """The transformer on the ``meta`` device."""
        import torch

        from .denoiser import ImageCosmosTransformer

        with torch.device("meta"), layout_errors(checkpoint.name, "transformer", self.title):
            denoiser: nn.Module = ImageCosmosTransformer(**tensor_layout.denoiser_config(checkpoint.shapes))
        return denoiser.requires_grad_(False)

    def load_vae(self, checkpoint: BaseCheckpoint, dtype: torch.dtype) -> nn.Module:
        """``diffusers.AutoencoderKLQwenImage``, frozen, on the CPU."""
        from .qwen_image_vae import load_qwen_image_vae

        vae: nn.Module = load_qwen_image_vae(file_of(checkpoint, checkpoint.vae), dtype, self.title)
        return vae

    def encode_images(self, vae: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The posterior's mode, as other trainers of this family use it, and a standard deviation of zero."""
        from .qwen_image_vae import encode_to_latents

        latents = encode_to_latents(vae, pixels)
        return latents, latents.new_zeros(latents.shape)

    def decode_latents(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        """See :func:`.qwen_image_vae.decode_from_latents`."""
        from .qwen_image_vae import decode_from_latents

        return decode_from_latents(vae, latents)

    def load_text_encoder(
        self, checkpoint: BaseCheckpoint, dtype: torch.dtype, device: torch.device, settings: TextSettings = PLAIN_TEXT
    ) -> text.AnimaText:
        """Qwen3, which is the front part, and the adapter."""
        from .text_weights import load_adapter, load_qwen

        qwen = adapter = None
        if settings.part != "back":
            qwen = load_qwen(file_of(checkpoint, checkpoint.text_encoder), dtype, self.title).to(device)
        if settings.part != "front":
            adapter = load_adapter(checkpoint.file, dtype, self.title).to(device)
        return text.AnimaText(qwen, adapter, self.read_whole(settings))

    def empty_text_encoder(self, checkpoint: BaseCheckpoint, settings: TextSettings = PLAIN_TEXT) -> text.AnimaText:
        """Qwen3 and the adapter on the ``meta`` device."""
        from .text_weights import empty_adapter, empty_qwen

        qwen = None if settings.part == "back" else empty_qwen(file_of(checkpoint, checkpoint.text_encoder), self.title)
        adapter = None if settings.part == "front" else empty_adapter(checkpoint.file, self.title)
        return text.AnimaText(qwen, adapter, self.read_whole(settings))

    def token_counter(self, checkpoint: BaseCheckpoint) -> Callable[[str], int]:
        """Tokens of the tokenizer that finds more of them."""
        return text.count_tokens

    def text_targets(self, model: nn.Module, targets: str) -> list[str]:
        """kohya's modules: the linear layers of attention and MLP, 196 of Qwen3 and 60 of the adapter; ``attention``: without the MLP."""
        from torch import nn

        kinds = (".self_attn.", ".cross_attn.") if targets == "attention" else (".self_attn.", ".cross_attn.", ".mlp.")
        linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
        return [name for name in linear if any(kind in name for kind in kinds)]

    def denoiser_inputs(
        self, conditions: Sequence[dict[str, torch.Tensor]], framings: Sequence[Framing], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        """``encoder_hidden_states`` (batch, 512, width), with rows of zeros after each prompt."""
        return {"encoder_hidden_states": text.padded([condition["embeds"] for condition in conditions], device, dtype)}

    def encoder_of(self, pipeline: Any, settings: TextSettings) -> text.AnimaText:
        """The models of ``pipeline.text_encoder`` with these settings."""
        return text.AnimaText(pipeline.text_encoder.qwen, pipeline.text_encoder.adapter, settings)

    def empty_condition(self, denoiser: nn.Module, max_tokens: int = 75) -> dict[str, torch.Tensor]:
        """``embeds`` of 512 tokens."""
        import torch

        width = int(denoiser.config.text_embed_dim)  # type: ignore[union-attr,arg-type]
        return {"embeds": torch.empty(text.ROWS, width, device="meta")}


FAMILY = Anima()
