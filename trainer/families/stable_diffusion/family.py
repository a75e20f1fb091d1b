"""What SD 1.x, SD 2.x and SDXL have in common: an LDM UNet, an AutoencoderKL, the noise schedule, the adapter targets.

Each family's own file holds what differs. The same code reads smaller models of the same architecture (the embedded demo base), because
their widths follow from the tensor shapes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import UserError
from ...core.messages import Message, Setting
from ..checkpoints.base_checkpoint import BaseCheckpoint, layout_errors
from ..checkpoints.diffusers_folder import load_from_folder, read_json, require_weights, weights_variant
from ..checkpoints.require_filled import require_filled
from ..flow_sampling import FlowEuler
from ..interface import NOWHERE, PLAIN_TEXT, Flow, Framing, LatentSpace, TextSettings
from ..prediction import EPSILON, FLOW, Prediction
from . import clip_text, ldm_configs, prediction_markers
from .noise_schedule import SCHEDULE
from .vae import load_ldm_vae, load_vae, open_vae

if TYPE_CHECKING:
    import torch
    from torch import nn


class StableDiffusion(ABC):
    """The shared part of the families, with one text encoder as in SD 1.x and 2.x.

    ``heads`` is the number of attention heads of every level; None: 64 channels a head. ``text_folders`` are the folders of the text
    encoders in a diffusers model.
    """

    name: str
    title: str
    latents = LatentSpace(channels=4, downscale=8, scaling_factor=0.18215)  # SD 1.x's VAE
    text_folders: tuple[str, ...] = ("text_encoder",)
    text_components: tuple[str, ...] = ("te1",)
    preset_group = "sd15"
    trains_in_fp16 = True
    learning_rate = 1e-4  # of kohya's documentation and the reference run
    heads: int | None = None
    beta_schedule: Mapping[str, Any] | None = SCHEDULE
    flow: Flow | None = None

    def with_parts(
        self, checkpoint: BaseCheckpoint, vae: str, text_encoder: str, candidates: Mapping[str, Sequence[Path]] = NOWHERE
    ) -> BaseCheckpoint:
        """A separate VAE is possible. The text encoders are the checkpoint's own."""
        if text_encoder:
            raise UserError(
                Message(Setting("base.text_encoder"), f" is set, but {self.title} models have their text encoders in the checkpoint."),
                Message("Leave ", Setting("base.text_encoder"), " empty."),
                kind="config",
            )
        return replace(checkpoint, vae=open_vae(vae)) if vae else checkpoint

    def require_parts(self, checkpoint: BaseCheckpoint) -> None:
        """Raise UserError unless UNet, VAE and text encoders are present and readable. ``recognises`` has checked those of a single file
        except the VAE."""
        if checkpoint.kind == "file":
            if checkpoint.vae is None:
                ldm_configs.vae_config(checkpoint.shapes, scaling_factor=1.0)
            return
        for part in ("unet", *(() if checkpoint.vae else ("vae",)), *self.text_folders):
            folder = checkpoint.path / part
            if not (folder / "config.json").is_file():
                other = Message(", or choose a separate VAE in ", Setting("base.vae")) if part == "vae" else ""
                hint = Message("Download the model again with all its folders", other, ".")
                raise UserError(f"{checkpoint.name} has no {part} ({part}/config.json is missing).", hint, kind="checkpoint")
            require_weights(folder, f"{checkpoint.name}/{part}")

    def prediction(self, checkpoint: BaseCheckpoint) -> Prediction:
        """What the checkpoint states (see ``prediction_markers``), otherwise epsilon."""
        return prediction_markers.prediction(checkpoint)

    def states_prediction(self, checkpoint: BaseCheckpoint) -> bool:
        """Whether markers, metadata or configuration state the prediction."""
        return prediction_markers.states_prediction(checkpoint)

    def read_denoiser(self, checkpoint: BaseCheckpoint, dtype: torch.dtype, *, channels_last: bool = False) -> dict[str, torch.Tensor]:
        """All tensors below ``model.diffusion_model.``."""
        return _below(ldm_configs.UNET, checkpoint, dtype, channels_last=channels_last)

    def load_denoiser(self, checkpoint: BaseCheckpoint, dtype: torch.dtype, read: dict[str, torch.Tensor] | None = None) -> nn.Module:
        """``diffusers.UNet2DConditionModel``, frozen, on the CPU."""
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        if checkpoint.kind == "folder":
            return self._load_folder(UNet2DConditionModel, checkpoint, "unet", dtype)
        from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

        unet = self.empty_denoiser(checkpoint)
        read = self.read_denoiser(checkpoint, dtype) if read is None else read
        with layout_errors(checkpoint.name, "unet", self.title):
            tensors = convert_ldm_unet_checkpoint(read, self.unet_config(checkpoint))
            # from_single_file would copy every tensor into the memory format of an empty model
            unet.load_state_dict(tensors, strict=False, assign=True)
            require_filled(unet)
        return unet.eval().requires_grad_(False)

    def empty_denoiser(self, checkpoint: BaseCheckpoint) -> nn.Module:
        """The UNet on the ``meta`` device."""
        import torch
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        with torch.device("meta"), layout_errors(checkpoint.name, "unet", self.title):
            unet: nn.Module = UNet2DConditionModel.from_config(self.unet_config(checkpoint))
        return unet.requires_grad_(False)

    def unet_config(self, checkpoint: BaseCheckpoint) -> dict[str, Any]:
        """The diffusers configuration of the checkpoint's UNet."""
        if checkpoint.kind == "folder":
            return read_json(checkpoint.path / "unet" / "config.json")
        return ldm_configs.unet_config(checkpoint.shapes, heads=self.heads)

    def load_vae(self, checkpoint: BaseCheckpoint, dtype: torch.dtype) -> nn.Module:
        """``diffusers.AutoencoderKL``, frozen, on the CPU: the separate VAE if there is one, otherwise the checkpoint's own."""
        if checkpoint.vae is not None:
            return load_vae(checkpoint.vae, dtype, self.latents.scaling_factor)
        if checkpoint.kind == "folder":
            from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

            return self._load_folder(AutoencoderKL, checkpoint, "vae", dtype)
        tensors = _below(ldm_configs.VAE, checkpoint, dtype)
        with layout_errors(checkpoint.name, "vae", self.title):
            config = ldm_configs.vae_config(checkpoint.shapes, scaling_factor=self.latents.scaling_factor)
            vae: nn.Module = load_ldm_vae(tensors, config, dtype).eval().requires_grad_(False)
        return vae

    def encode_images(self, vae: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the posterior, times the VAE's factor."""
        posterior, factor = vae.encode(pixels).latent_dist, float(vae.config.scaling_factor)
        return posterior.mean * factor, posterior.std * factor

    def decode_latents(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        """The VAE's output for ``latents`` without its factor."""
        pixels: torch.Tensor = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        return pixels

    def sampling_scheduler(self, prediction: Prediction = EPSILON, *, karras: bool = False, shift: float = 0.0) -> Any:
        """DPM++ 2M, which is close to converged at 20 steps; Euler for a rectified flow.

        With zero terminal SNR, sampling starts at the very last timestep. ``karras`` selects the noise levels of Karras et al. 2022
        (equation 5) instead of evenly spaced timesteps.
        """
        if prediction.kind == FLOW and self.flow is not None:
            return FlowEuler(shift or self.flow.sampling_shift, self.flow.timestep_multiplier)
        from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

        zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if prediction.zero_terminal_snr else {}
        return DPMSolverMultistepScheduler(
            **SCHEDULE,
            prediction_type=prediction.kind,
            steps_offset=1,
            algorithm_type="dpmsolver++",
            solver_order=2,
            use_karras_sigmas=karras,
            **zero,
        )

    def denoiser_targets(self, denoiser: nn.Module, targets: str, beyond: Collection[str] = ()) -> list[str]:
        """``all-linear``: kohya's set, every Linear and 1x1 convolution inside the transformers; ``attention``: q, k, v, out;
        ``all-linear+conv``: kohya's set with ``conv_dim``, which adds the layers of ResNet blocks and resamplers. There is nothing
        ``beyond``."""
        from torch import nn

        for name in beyond:
            raise UserError(
                Message(Setting(f"network.{name}", True), f" is for transformers, but {self.title} has a UNet."),
                Message("Set ", Setting(f"network.{name}", False), "."),
                kind="config",
            )
        names = []
        for name, module in denoiser.named_modules():
            linear = isinstance(module, nn.Linear)
            pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
            if ".attentions." not in name:
                convolutional = any(part in name for part in (".resnets.", ".downsamplers.", ".upsamplers."))
                if targets == "all-linear+conv" and convolutional and isinstance(module, nn.Linear | nn.Conv2d):
                    names.append(name)
            elif targets == "attention" and not (linear and (".attn1." in name or ".attn2." in name)):
                continue
            elif linear or pointwise:
                names.append(name)
        return names

    def text_targets(self, model: nn.Module, targets: str) -> list[str]:
        """kohya's modules of a CLIP text model, 6 a layer (72 on SD 1.x); ``attention``: 4 a layer."""
        return clip_text.text_targets(model, targets)

    def token_counter(self, checkpoint: BaseCheckpoint) -> Callable[[str], int]:
        """CLIP's token count. Both encoders of SDXL tokenize alike."""
        return clip_text.ClipText(clip_text.tokenizer(checkpoint), None).count_tokens

    def text_settings(self, max_tokens: int, clip_skip: int, empty_prompt: str = "comfyui") -> TextSettings:
        """SD 2.x and SDXL were trained on the layer before the last, and support no other."""
        if clip_skip not in (0, 2):
            raise UserError(
                Message(Setting("training.clip_skip"), f" is {clip_skip}, but {self.title} always uses the layer before the last (2)."),
                Message("Set ", Setting("training.clip_skip", 0), ", which uses the model's default."),
                kind="config",
            )
        return TextSettings(max_tokens)

    def denoiser_inputs(
        self, conditions: Sequence[dict[str, torch.Tensor]], framings: Sequence[Framing], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        """``encoder_hidden_states`` of shape (batch, tokens, width)."""
        import torch

        # moved one by one: torch.stack on the CPU gives memory that is not page-locked, and copying it would wait for the GPU
        moved = [condition["embeds"].to(device=device, dtype=dtype, non_blocking=True) for condition in conditions]
        return {"encoder_hidden_states": torch.stack(moved)}

    def empty_condition(self, denoiser: nn.Module, max_tokens: int = 75) -> dict[str, torch.Tensor]:
        """``embeds`` of ``max_tokens`` tokens between a start and an end token."""
        import torch

        width = int(denoiser.config.cross_attention_dim)  # type: ignore[union-attr,arg-type]
        return {"embeds": torch.empty(max_tokens + 2, width, device="meta")}

    @abstractmethod
    def load_text_encoder(
        self, checkpoint: BaseCheckpoint, dtype: torch.dtype, device: torch.device, settings: TextSettings = PLAIN_TEXT
    ) -> Any:
        """The text encoder with its tokenizer."""

    def encoder_of(self, pipeline: Any, settings: TextSettings) -> Any:
        """The pipeline's text model with its tokenizer."""
        return clip_text.ClipText(pipeline.tokenizer, pipeline.text_encoder, settings)

    def pipeline(self, checkpoint: BaseCheckpoint, *, dtype: torch.dtype, settings: TextSettings = PLAIN_TEXT) -> Any:
        """``StableDiffusionPipeline`` without a safety checker, as ComfyUI has none."""
        import torch
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

        text = self.load_text_encoder(checkpoint, dtype, torch.device("cpu"), settings)
        return StableDiffusionPipeline(
            vae=self.load_vae(checkpoint, torch.float32),
            text_encoder=text.model,
            tokenizer=text.tokenizer,
            unet=self.load_denoiser(checkpoint, dtype),
            scheduler=self.sampling_scheduler(self.prediction(checkpoint)),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def image_to_image(self, pipeline: Any) -> Any:
        """``StableDiffusionImg2ImgPipeline`` that shares the models of ``pipeline``."""
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import StableDiffusionImg2ImgPipeline

        return StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)

    def _load_folder(self, cls: Any, checkpoint: BaseCheckpoint, part: str, dtype: torch.dtype) -> nn.Module:
        options = {"subfolder": part, "torch_dtype": dtype, "variant": weights_variant(checkpoint.path / part)}
        with layout_errors(checkpoint.name, part, self.title):
            model: nn.Module = load_from_folder(cls, checkpoint.path, **options).eval().requires_grad_(False)
        return model


def _below(prefix: str, checkpoint: BaseCheckpoint, dtype: torch.dtype, *, channels_last: bool = False) -> dict[str, torch.Tensor]:
    return checkpoint.tensors(lambda key: key.startswith(prefix), dtype, channels_last=channels_last)
