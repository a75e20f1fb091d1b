"""Stable Diffusion 1.x: context width 768, one CLIP ViT-L text encoder, epsilon prediction.

A smaller model of the same architecture (the embedded demo base) is read by the same code: its widths follow from the
tensor shapes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from . import ldm
from .base import TextEncoder, tokenizer_folder
from .checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch
    from torch import nn

_HEADS = 8
_CLIP_HEAD_DIM = 64
_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}
# transformers' key prefix in original-layout files; some merges drop "text_model."
_TEXT_PREFIXES = ("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer.")


class StableDiffusion1:
    """The family's one instance is ``trainer.families.sd1.FAMILY``."""

    name = "sd1"
    title = "Stable Diffusion 1.x"
    kohya_version = "sd_v1"
    architecture = "stable-diffusion-v1/lora"
    prediction_type = "epsilon"
    latent_scale = 0.18215  # scaling_factor of SD 1.x's VAE: makes latents about unit variance

    def recognises(self, checkpoint: Checkpoint) -> bool:
        """An LDM UNet with 1x1-conv projections and a CLIP text model of the same width as its context."""
        if checkpoint.kind == "folder":
            config = _read_json(checkpoint.path / "unet" / "config.json")
            plain = config.get("in_channels", 4) == 4 and config.get("addition_embed_type") is None
            return plain and not config.get("use_linear_projection")
        shapes = checkpoint.shapes
        if f"{ldm.UNET}input_blocks.0.0.weight" not in shapes or f"{ldm.UNET}label_emb.0.0.weight" in shapes:
            return False
        config = ldm.unet_config(shapes, heads=_HEADS)
        return bool(_text_prefix(shapes)) and config["in_channels"] == 4 and not config["use_linear_projection"]

    def load_unet(self, checkpoint: Checkpoint, dtype: torch.dtype) -> nn.Module:
        """``diffusers.UNet2DConditionModel``, frozen, on the CPU."""
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        return self._load(UNet2DConditionModel, checkpoint, "unet", ldm.UNET, dtype)

    def empty_unet(self, checkpoint: Checkpoint) -> nn.Module:
        """The UNet on the ``meta`` device."""
        import torch
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        with torch.device("meta"):
            unet: nn.Module = UNet2DConditionModel.from_config(self.unet_config(checkpoint))
        return unet.requires_grad_(False)

    def load_vae(self, checkpoint: Checkpoint, dtype: torch.dtype) -> nn.Module:
        """``diffusers.AutoencoderKL``, frozen, on the CPU."""
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        return self._load(AutoencoderKL, checkpoint, "vae", ldm.VAE, dtype)

    def load_text_encoder(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> TextEncoder:
        """CLIP ViT-L's text model with the tokenizer that travels with the pack."""
        from transformers import CLIPTextModel, CLIPTokenizer

        if checkpoint.kind == "folder":
            model = CLIPTextModel.from_pretrained(checkpoint.path / "text_encoder", dtype=dtype, local_files_only=True)
        else:
            model = _clip_from_single_file(checkpoint)
        model = model.eval().requires_grad_(False).to(device=device, dtype=dtype)
        return ClipText(CLIPTokenizer.from_pretrained(str(_tokenizer(checkpoint)), local_files_only=True), model)

    def unet_config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """The diffusers configuration of the checkpoint's UNet."""
        if checkpoint.kind == "folder":
            return _read_json(checkpoint.path / "unet" / "config.json")
        return ldm.unet_config(checkpoint.shapes, heads=_HEADS)

    def noise_scheduler(self) -> Any:
        """DDPM with SD 1.x's betas; timesteps are 0..999."""
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        return DDPMScheduler(**_SCHEDULER)

    def sampler(self) -> Any:
        """DPM++ 2M, which is close to converged at 20 steps."""
        from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

        return DPMSolverMultistepScheduler(**_SCHEDULER, steps_offset=1, algorithm_type="dpmsolver++", solver_order=2)

    def lora_targets(self, unet: nn.Module, targets: str) -> list[str]:
        """``all-linear``: kohya's set, every Linear and 1x1 convolution inside the transformers; ``attention``: q, k, v, out."""
        from torch import nn

        names = []
        for name, module in unet.named_modules():
            if ".attentions." not in name:
                continue
            linear = isinstance(module, nn.Linear)
            pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
            if targets == "attention" and not (linear and (".attn1." in name or ".attn2." in name)):
                continue
            if linear or pointwise:
                names.append(name)
        return names

    def unet_inputs(self, conditions: Sequence[dict[str, torch.Tensor]], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        """``encoder_hidden_states`` of shape (batch, tokens, width)."""
        import torch

        stacked = torch.stack([condition["embeds"] for condition in conditions])
        return {"encoder_hidden_states": stacked.to(device=device, dtype=dtype, non_blocking=True)}

    def pipeline(self, checkpoint: Checkpoint, *, image_to_image: bool, dtype: torch.dtype) -> Any:
        """``StableDiffusionPipeline`` or ``StableDiffusionImg2ImgPipeline`` without a safety checker, as ComfyUI has none."""
        import torch
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import StableDiffusionImg2ImgPipeline

        text = self.load_text_encoder(checkpoint, dtype, torch.device("cpu"))
        assert isinstance(text, ClipText)
        cls = StableDiffusionImg2ImgPipeline if image_to_image else StableDiffusionPipeline
        return cls(
            vae=self.load_vae(checkpoint, torch.float32),
            text_encoder=text.model,
            tokenizer=text.tokenizer,
            unet=self.load_unet(checkpoint, dtype),
            scheduler=self.sampler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def _load(self, cls: Any, checkpoint: Checkpoint, part: str, prefix: str, dtype: torch.dtype) -> nn.Module:
        if checkpoint.kind == "folder":
            model = cls.from_pretrained(str(checkpoint.path), subfolder=part, torch_dtype=dtype, local_files_only=True)
        else:
            tensors = checkpoint.tensors(lambda key: key.startswith(prefix))
            with self._config_folder(checkpoint) as folder:
                try:
                    model = cls.from_single_file(tensors, config=folder, subfolder=part, torch_dtype=dtype, local_files_only=True)
                except NotImplementedError as error:  # weights that were never filled in
                    raise _incomplete(checkpoint, part, "tensors are missing") from error
                except (ValueError, KeyError) as error:  # misshapen tensors
                    raise _incomplete(checkpoint, part, str(error)) from error
            if any(tensor.is_meta for tensor in model.state_dict().values()):
                raise _incomplete(checkpoint, part, "tensors are missing")
        frozen: nn.Module = model.eval().requires_grad_(False)
        return frozen

    @contextmanager
    def _config_folder(self, checkpoint: Checkpoint) -> Iterator[str]:
        """A temporary diffusers folder of configurations: what ``from_single_file`` needs to stay off the network."""
        with tempfile.TemporaryDirectory(prefix="animelora-") as name:
            for part, config in (
                ("unet", self.unet_config(checkpoint)),
                ("vae", ldm.vae_config(checkpoint.shapes, scaling_factor=self.latent_scale)),
            ):
                folder = Path(name) / part
                folder.mkdir()
                (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
            yield name


class ClipText:
    """CLIP text model and tokenizer; prompts are cut at 77 tokens and padded with the end token, as ComfyUI does."""

    def __init__(self, tokenizer: Any, model: Any) -> None:
        self.tokenizer = tokenizer
        self.model = model

    def encode(self, prompts: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        """``embeds``: the last hidden state after the final layer norm, (77, width), fp32 on the CPU."""
        import torch

        device = self.model.device
        tokens = self.tokenizer(list(prompts), padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        with torch.no_grad():
            hidden = self.model(tokens.input_ids.to(device))[0]
        return [{"embeds": row} for row in hidden.float().cpu()]

    def count_tokens(self, prompt: str) -> int:
        """Tokens of ``prompt`` without the start and end tokens."""
        return len(self.tokenizer(prompt, truncation=False).input_ids) - 2


def _clip_from_single_file(checkpoint: Checkpoint) -> Any:
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    prefix = _text_prefix(checkpoint.shapes)
    config = ldm.clip_config(checkpoint.shapes, prefix=prefix, head_dim=_CLIP_HEAD_DIM, activation="quick_gelu")
    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(**config))
    tensors = checkpoint.tensors(lambda key: key.startswith(prefix) and not key.endswith("position_ids"))
    # transformers 5.6 dropped "text_model." from CLIPTextModel's names; earlier versions have it
    lead = "text_model." if any(name.startswith("text_model.") for name in model.state_dict()) else ""
    renamed = {lead + key[len(prefix) :]: value.float() for key, value in tensors.items()}
    model.to_empty(device="cpu")
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    missing = [key for key in missing if not key.endswith("position_ids")]
    if missing or unexpected:
        raise UserError(
            f"The text encoder of {checkpoint.name} is incomplete ({len(missing)} tensors missing, {len(unexpected)} unknown, "
            f"for example {(missing + unexpected)[0]}).",
            "Use a complete SD 1.x checkpoint.",
            kind="checkpoint",
        )
    for name, buffer in model.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand(buffer.shape))
    return model


def _incomplete(checkpoint: Checkpoint, part: str, cause: str) -> UserError:
    first = cause.strip().splitlines()[0][:200] if cause.strip() else "unknown layout"
    return UserError(
        f"The {part} of {checkpoint.name} is incomplete or of an unusual layout ({first}).",
        "Use a complete SD 1.x checkpoint; if this one was downloaded or merged, do that again.",
        kind="checkpoint",
    )


def _text_prefix(shapes: ldm.Shapes) -> str:
    for prefix in _TEXT_PREFIXES:
        if f"{prefix}embeddings.token_embedding.weight" in shapes:
            return prefix
    return ""


def _tokenizer(checkpoint: Checkpoint) -> Path:
    own = checkpoint.path / "tokenizer"
    return own if checkpoint.kind == "folder" and (own / "vocab.json").is_file() else tokenizer_folder()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}", "Copy the model folder again.", kind="checkpoint") from error
    return data if isinstance(data, dict) else {}


FAMILY = StableDiffusion1()
