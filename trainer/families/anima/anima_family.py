"""The family Anima: a Cosmos-Predict2 transformer of 2 B parameters that flows, conditioned on Qwen3 through an adapter over T5 tokens.

The base model, its previews and fine-tunes, and versions with more blocks belong to it; sizes follow from the shapes of tensors.
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
from .libraries import require_libraries

if TYPE_CHECKING:
    import torch
    from torch import nn

FLOWS = Prediction(FLOW)
_FLOW = Flow(timestep_multiplier=1.0, sampling_shift=3.0)
# the linear layers of a block; kohya's modules are those of attention and MLP
_ATTENTION = tuple(f"{name}.{part}" for name in ("attn1", "attn2") for part in ("to_q", "to_k", "to_v", "to_out.0"))
_TARGETS = {"attention": _ATTENTION, "all-linear": (*_ATTENTION, "ff.net.0.proj", "ff.net.2")}
_MODULATION = tuple(f"norm{place}.linear_{part}" for place in (1, 2, 3) for part in (1, 2))
_FINAL_LAYER = ("norm_out.linear_1", "norm_out.linear_2", "proj_out")


class Anima:
    """The family Anima."""

    name = "anima"
    title = "Anima"
    latents = LatentSpace(channels=16, downscale=8, scaling_factor=1.0, multiple=16, largest=2048)
    text_components: tuple[str, ...] = ("te1", "adapter")
    preset_group = "anima"
    trains_in_fp16 = False  # the residual stream is too large; ComfyUI keeps it in fp32
    learning_rate = 1e-4  # of the trainers that ship presets at scale 1
    beta_schedule: Mapping[str, Any] | None = None
    flow: Flow | None = _FLOW

    def recognises(self, checkpoint: BaseCheckpoint) -> bool:
        """A single file with a Cosmos-Predict2 transformer and Anima's text adapter."""
        return checkpoint.kind == "file" and tensor_layout.has_adapter(checkpoint.shapes)

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
        """Raise UserError unless text encoder and VAE are known, and the libraries are new enough for this family."""
        require_libraries()
        shapes = checkpoint.shapes
        if checkpoint.text_encoder is None and tensor_layout.text_prefix(shapes) is None:
            raise _missing(checkpoint, tensor_layout.text_encoder_kind(shapes), "qwen_3_06b_base.safetensors")
        if checkpoint.vae is None and tensor_layout.vae_prefix(shapes) is None:
            raise _missing(checkpoint, tensor_layout.vae_kind(), "qwen_image_vae.safetensors")
        with layout_errors(checkpoint.name, "transformer", self.title):
            tensor_layout.denoiser_config(shapes)
            tensor_layout.adapter_config(shapes)

    def prediction(self, checkpoint: BaseCheckpoint) -> Prediction:
        """The velocity of a rectified flow."""
        return FLOWS

    def states_prediction(self, checkpoint: BaseCheckpoint) -> bool:
        """The architecture states it: all models of this family flow."""
        return True

    def read_denoiser(self, checkpoint: BaseCheckpoint, dtype: torch.dtype, *, channels_last: bool = False) -> dict[str, torch.Tensor]:
        """The transformer's tensors, without the adapter's."""
        wanted = tensor_layout.denoiser_keys(checkpoint.shapes)
        return checkpoint.tensors(lambda key: key in wanted, dtype)

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

        vae: nn.Module = load_qwen_image_vae(_file(checkpoint, checkpoint.vae), dtype, self.title)
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
            qwen = load_qwen(_file(checkpoint, checkpoint.text_encoder), dtype, self.title).to(device)
        if settings.part != "front":
            adapter = load_adapter(checkpoint.file, dtype, self.title).to(device)
        return text.AnimaText(qwen, adapter, replace(settings, max_tokens=text.ROWS, clip_skip=0))

    def empty_text_encoder(self, checkpoint: BaseCheckpoint, settings: TextSettings = PLAIN_TEXT) -> text.AnimaText:
        """Qwen3 and the adapter on the ``meta`` device."""
        from .text_weights import empty_adapter, empty_qwen

        qwen = None if settings.part == "back" else empty_qwen(_file(checkpoint, checkpoint.text_encoder), self.title)
        adapter = None if settings.part == "front" else empty_adapter(checkpoint.file, self.title)
        return text.AnimaText(qwen, adapter, replace(settings, max_tokens=text.ROWS, clip_skip=0))

    def token_counter(self, checkpoint: BaseCheckpoint) -> Callable[[str], int]:
        """Tokens of the tokenizer that finds more of them."""
        return text.count_tokens

    def text_settings(self, max_tokens: int, clip_skip: int, empty_prompt: str = "comfyui") -> TextSettings:
        """512 tokens are always read: limits of CLIP have no meaning here. Raises UserError for a clip skip."""
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
        """``all-linear``: kohya's set, the linear layers of attention and MLP in every block (280 of 28 blocks); ``attention``: q, k, v,
        out. Beyond these, the ``modulation`` of every block (168) and the ``final_layer`` (3)."""
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
        return [name for name in linear if name in outside or (name.startswith("transformer_blocks.") and name.endswith(in_blocks))]

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

    def pipeline(self, checkpoint: BaseCheckpoint, *, dtype: torch.dtype, settings: TextSettings = PLAIN_TEXT) -> None:
        """None: diffusers' pipeline is made of components from the hub, and loads no LoRA in kohya's format."""
        return

    def encoder_of(self, pipeline: Any, settings: TextSettings) -> text.AnimaText:
        """The models of ``pipeline.text_encoder`` with these settings."""
        return text.AnimaText(pipeline.text_encoder.qwen, pipeline.text_encoder.adapter, settings)

    def image_to_image(self, pipeline: Any) -> None:
        """None, as for ``pipeline``."""
        return

    def empty_condition(self, denoiser: nn.Module, max_tokens: int = 75) -> dict[str, torch.Tensor]:
        """``embeds`` of 512 tokens."""
        import torch

        width = int(denoiser.config.text_embed_dim)  # type: ignore[union-attr,arg-type]
        return {"embeds": torch.empty(text.ROWS, width, device="meta")}


def _part(checkpoint: BaseCheckpoint, reference: str, kind: PartKind, candidates: Sequence[Path], *, own: bool) -> SeparatePart | None:
    if reference:
        return open_part(reference, kind)
    return None if own else best_part(candidates, kind) or find_part(checkpoint.path, kind)


def _file(checkpoint: BaseCheckpoint, part: SeparatePart | None) -> WeightsFile:
    return checkpoint.file if part is None else WeightsFile(part.path)


def _missing(checkpoint: BaseCheckpoint, kind: PartKind, example: str) -> UserError:
    folder = kind.folders[0]
    return UserError(
        f"{checkpoint.name} does not hold the {kind.title} that Anima needs, and no file beside it does.",
        Message(f"Put {example} into ComfyUI's folder models/{folder}, or name the file in ", kind.setting, "."),
        kind="checkpoint",
    )


FAMILY = Anima()
