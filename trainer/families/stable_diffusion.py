"""What SD 1.x, SD 2.x and SDXL have in common: an LDM UNet, an AutoencoderKL, the noise schedule, the LoRA targets.

A family's own file says what differs. A smaller model of the same architecture (the embedded demo base) is read by the same
code: its widths follow from the tensor shapes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import UserError
from . import clip, ldm, markers
from .base import EPSILON, Framing, Prediction, TextSettings
from .checkpoint import BaseCheckpoint, from_folder, laid_out_as
from .markers import SCHEDULE, read_json
from .parts import weights_variant

if TYPE_CHECKING:
    import torch
    from torch import nn


class StableDiffusion:
    """The shared part of a family. ``heads`` is the number of attention heads of every level; None: 64 channels a head."""

    name: str
    title: str
    latent_scale: float
    text_encoders: tuple[str, ...] = ("text_encoder",)
    preset_group = "sd15"
    learning_rate = 1e-4  # of kohya's documentation and the reference run
    heads: int | None = None

    def prediction(self, checkpoint: BaseCheckpoint) -> Prediction:
        """What the checkpoint says (see ``markers.prediction``), else epsilon."""
        return markers.prediction(checkpoint)

    def read_denoiser(self, checkpoint: BaseCheckpoint, dtype: torch.dtype, *, channels_last: bool = False) -> dict[str, torch.Tensor]:
        """All below ``model.diffusion_model.``."""
        return _below(ldm.UNET, checkpoint, dtype, channels_last=channels_last)

    def load_denoiser(self, checkpoint: BaseCheckpoint, dtype: torch.dtype, read: dict[str, torch.Tensor] | None = None) -> nn.Module:
        """``diffusers.UNet2DConditionModel``, frozen, on the CPU."""
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        if checkpoint.kind == "folder":
            return self._load(UNet2DConditionModel, checkpoint, "unet", ldm.UNET, dtype)
        from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

        unet = self.empty_denoiser(checkpoint)
        read = self.read_denoiser(checkpoint, dtype) if read is None else read
        with laid_out_as(checkpoint, "unet", self.title):
            tensors = convert_ldm_unet_checkpoint(read, self.unet_config(checkpoint))
            # from_single_file would copy every tensor into the memory layout that an empty model has
            unet.load_state_dict(tensors, strict=False, assign=True)
            _require_filled(unet)
        return unet.eval().requires_grad_(False)

    def empty_denoiser(self, checkpoint: BaseCheckpoint) -> nn.Module:
        """The UNet on the ``meta`` device."""
        import torch
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        with torch.device("meta"), laid_out_as(checkpoint, "unet", self.title):
            unet: nn.Module = UNet2DConditionModel.from_config(self.unet_config(checkpoint))
        return unet.requires_grad_(False)

    def load_vae(self, checkpoint: BaseCheckpoint, dtype: torch.dtype) -> nn.Module:
        """``diffusers.AutoencoderKL``, frozen, on the CPU: the one that was chosen, else the checkpoint's own."""
        if checkpoint.vae is not None:
            return checkpoint.vae.load(dtype, self.latent_scale)
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        return self._load(AutoencoderKL, checkpoint, "vae", ldm.VAE, dtype)

    def unet_config(self, checkpoint: BaseCheckpoint) -> dict[str, Any]:
        """The diffusers configuration of the checkpoint's UNet."""
        if checkpoint.kind == "folder":
            return read_json(checkpoint.path / "unet" / "config.json")
        return ldm.unet_config(checkpoint.shapes, heads=self.heads)

    def noise_scheduler(self, prediction: Prediction = EPSILON) -> Any:
        """DDPM with Stable Diffusion's betas; timesteps are 0..999."""
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        return DDPMScheduler(**SCHEDULE, prediction_type=prediction.kind, rescale_betas_zero_snr=prediction.zero_terminal_snr)

    def sampling_scheduler(self, prediction: Prediction = EPSILON, *, karras: bool = False) -> Any:
        """DPM++ 2M, which is close to converged at 20 steps. With zero terminal SNR the steps begin at the very last timestep. ``karras``:
        the noise levels are those of Karras et al. 2022 (equation 5), else evenly spread timesteps."""
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

    def denoiser_targets(self, unet: nn.Module, targets: str) -> list[str]:
        """``all-linear``: kohya's set, every Linear and 1x1 convolution inside the transformers; ``attention``: q, k, v, out;
        ``all-linear+conv``: kohya's set with ``conv_dim``, which adds all that ResNet blocks and resamplers hold."""
        from torch import nn

        names = []
        for name, module in unet.named_modules():
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
        """kohya's modules of a CLIP text model: 6 a layer, 72 on SD 1.x; ``attention``: 4 a layer."""
        return clip.text_targets(model, targets)

    def token_counter(self, checkpoint: BaseCheckpoint) -> Callable[[str], int]:
        """CLIP's count; both encoders of SDXL cut text into the same tokens."""
        return clip.ClipText(clip.tokenizer(checkpoint), None).count_tokens

    def text_settings(self, max_tokens: int, clip_skip: int) -> TextSettings:
        """SD 2.x and SDXL were trained on the layer before the last and have no other."""
        if clip_skip not in (0, 2):
            raise UserError(
                f"training.clip_skip is {clip_skip}, but {self.title} always uses the layer before the last (2).",
                "Set training.clip_skip = 0, which is the model's own.",
                kind="config",
            )
        return TextSettings(max_tokens)

    def denoiser_inputs(
        self, conditions: Sequence[dict[str, torch.Tensor]], framings: Sequence[Framing], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        """``encoder_hidden_states`` of shape (batch, tokens, width)."""
        import torch

        # moved one by one: what torch.stack makes on the CPU is not page-locked, so that copying it would wait for the GPU
        moved = [condition["embeds"].to(device=device, dtype=dtype, non_blocking=True) for condition in conditions]
        return {"encoder_hidden_states": torch.stack(moved)}

    def empty_condition(self, unet: nn.Module, max_tokens: int = 75) -> dict[str, torch.Tensor]:
        """``embeds`` for ``max_tokens`` between a start and an end."""
        import torch

        width = int(unet.config.cross_attention_dim)  # type: ignore[union-attr,arg-type]
        return {"embeds": torch.empty(max_tokens + 2, width, device="meta")}

    def _load(self, cls: Any, checkpoint: BaseCheckpoint, part: str, prefix: str, dtype: torch.dtype) -> nn.Module:
        if checkpoint.kind == "folder":
            options = {"subfolder": part, "torch_dtype": dtype, "variant": weights_variant(checkpoint.path / part)}
            with laid_out_as(checkpoint, part, self.title):
                model = from_folder(cls, checkpoint.path, **options)
        else:
            tensors = _below(prefix, checkpoint, dtype)
            with laid_out_as(checkpoint, part, self.title), self._config_folder(checkpoint) as folder:
                model = cls.from_single_file(tensors, config=folder, subfolder=part, torch_dtype=dtype, local_files_only=True)
                _require_filled(model)
        frozen: nn.Module = model.eval().requires_grad_(False)
        return frozen

    @contextmanager
    def _config_folder(self, checkpoint: BaseCheckpoint) -> Iterator[str]:
        """A temporary diffusers folder of configurations: what ``from_single_file`` needs to stay off the network."""
        with tempfile.TemporaryDirectory(prefix="animelora-") as name:
            folder = Path(name) / "vae"
            folder.mkdir()
            config = ldm.vae_config(checkpoint.shapes, scaling_factor=self.latent_scale)
            (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
            yield name


def _require_filled(model: nn.Module) -> None:
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise NotImplementedError  # laid_out_as knows it


def _below(prefix: str, checkpoint: BaseCheckpoint, dtype: torch.dtype, *, channels_last: bool = False) -> dict[str, torch.Tensor]:
    return checkpoint.tensors(lambda key: key.startswith(prefix), dtype, channels_last=channels_last)
