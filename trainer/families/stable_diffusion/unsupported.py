"""Refuse checkpoints that this version cannot train, and say what they look like.

Special models have further parts or inputs, which would be lost without notice if they were trained like a plain text-to-image model.
"""

from __future__ import annotations

import math

from ...core.errors import UserError
from ..checkpoints.base_checkpoint import BaseCheckpoint
from ..checkpoints.diffusers_folder import read_json, read_scheduler
from ..prediction import DIFFUSION, FLOW
from .noise_schedule import SCHEDULE
from .prediction_markers import has_other_noise_levels, prediction

_CHANNELS = {5: "a depth model", 7: "an upscaler", 8: "a model that edits images by instruction (pix2pix)", 9: "an inpainting model"}


def refuse_special_models(checkpoint: BaseCheckpoint) -> None:
    """Raise UserError for a checkpoint with parts or inputs that this version does not train."""
    if reason := _folder_reason(checkpoint) if checkpoint.kind == "folder" else _file_reason(checkpoint):
        raise UserError(
            f"AnimeLoRA cannot train on {checkpoint.name}: {reason}.",
            "Use a plain text-to-image checkpoint. Most special models were made from one.",
            kind="checkpoint",
        )


def why_unrecognised(checkpoint: BaseCheckpoint) -> str:
    """What a checkpoint of no known family looks like; empty when nothing can be said about it."""
    if checkpoint.kind == "folder":
        return _why_unrecognised_folder(checkpoint)
    names = list(checkpoint.shapes)
    if any(name.endswith((".lora_down.weight", ".lora_up.weight", ".lora_A.weight")) for name in names):
        return "it is a LoRA file"
    if any(name.startswith(("double_blocks.", "model.diffusion_model.double_blocks.")) for name in names):
        return "it looks like Flux"
    if any(name.endswith("blocks.0.adaln_modulation_cross_attn.1.weight") for name in names):
        return "it looks like Cosmos-Predict2, the video model that Anima was made from, without Anima's text adapter (llm_adapter)"
    if any(name.endswith("clip_text_pooled_proj.0.weight") for name in names):
        return "it looks like NewBie, whose transformer is Lumina 2's with a second text encoder"
    if any(name.endswith("cap_pad_token") for name in names):
        return "it looks like Z-Image, whose transformer has other blocks than Lumina 2's"
    if not any(name.startswith("model.diffusion_model.") for name in names):
        return "it holds no UNet"
    stem = checkpoint.shapes.get("model.diffusion_model.input_blocks.0.0.weight", (0, 4))
    if len(stem) > 1 and stem[1] != 4:
        return _other_channels(stem[1])
    if "model.diffusion_model.label_emb.0.0.weight" in checkpoint.shapes:
        return "it looks like SDXL's refiner, or like SDXL without both of its text encoders"
    if any(name.startswith("cond_stage_model.model.") for name in names):
        return "it looks like SD 2.x with an incomplete text encoder"
    if not any(name.startswith("cond_stage_model.") for name in names):
        return "it holds no text encoder"
    return ""


def _why_unrecognised_folder(checkpoint: BaseCheckpoint) -> str:
    parts = [part for part in ("text_encoder", "text_encoder_2") if (checkpoint.path / part).is_dir()]
    if "addition_time_embed_dim" in (config := read_json(checkpoint.path / "unet" / "config.json")) and len(parts) == 1:
        return f"it looks like SDXL's refiner, or like SDXL with only one of its text encoders ({parts[0]})"
    if not parts:
        return "it holds no text encoder (text_encoder is missing)"
    kind = config.get("addition_embed_type")
    return f"its UNet has an additional input (unet/config.json: addition_embed_type = {kind!r})" if kind is not None else ""


def _other_channels(channels: int) -> str:
    model = f", so it is {_CHANNELS[channels]}" if channels in _CHANNELS else ""
    return f"its UNet takes {channels} channels, where a text-to-image model takes 4{model}"


def _file_reason(checkpoint: BaseCheckpoint) -> str:
    names = checkpoint.shapes
    if any(name.startswith("embedder.model.visual.") for name in names):
        return "it is an unCLIP model, which is also conditioned on an image"
    if any(name.startswith("model.diffusion_model.") and ".fuser." in name for name in names):
        return "it is a GLIGEN model, whose UNet has additional layers for boxes"
    if any(name.startswith("model.diffusion_model.") and ("time_stack." in name or "motion_modules." in name) for name in names):
        return "it is a video model, whose UNet has additional layers for time"
    return ""


def _folder_reason(checkpoint: BaseCheckpoint) -> str:
    unet = read_json(checkpoint.path / "unet" / "config.json")
    if (channels := unet.get("in_channels", 4)) != 4:
        return _other_channels(int(channels))
    for key in ("class_embed_type", "num_class_embeds", "encoder_hid_dim", "encoder_hid_dim_type"):
        if unet.get(key) is not None:
            return f"its UNet has an additional input (unet/config.json: {key} = {unet[key]!r})"
    scheduler = read_scheduler(checkpoint.path)
    if not has_other_noise_levels(str(scheduler.get("_class_name", ""))):  # ``choose_kind`` refuses those by name
        for key, value in SCHEDULE.items():
            if not _same(scheduler.get(key, value), value):
                return f"it has another noise schedule (scheduler_config.json: {key} = {scheduler[key]!r}, expected {value!r})"
        if scheduler.get("trained_betas") is not None:
            return "it has another noise schedule (scheduler_config.json: trained_betas)"
    vae = checkpoint.path / "vae" / "config.json"
    for key in ("latents_mean", "latents_std", "shift_factor"):
        if vae.is_file() and (read_json(vae).get(key)) is not None and prediction(checkpoint).kind in (*DIFFUSION, FLOW):
            return f"its latents are shifted (vae/config.json: {key})"
    return ""


def _same(first: object, second: object) -> bool:
    if isinstance(first, int | float) and isinstance(second, int | float):
        return math.isclose(first, second, rel_tol=1e-6)
    return first == second
