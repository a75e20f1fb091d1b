"""Graphs in ComfyUI's API format that the tests share."""

from __future__ import annotations

import zlib
from typing import Any

Graph = dict[str, dict[str, Any]]
Link = list[Any]


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """One node; links are ``[node id, output index]``."""
    return {"class_type": kind, "inputs": inputs}


def seed_of(name: str) -> int:
    """A training seed for each name: a run that differed only in its name would continue the run of another test."""
    return zlib.crc32(name.encode()) % 100_000


def train_settings(**changes: Any) -> dict[str, Any]:
    """Every widget of Train LoRA, with values for a quick test."""
    return {
        "name": "test_style",
        "epochs": 1,
        "rank": 4,
        "learning_rate": 1e-3,
        "batch_size": 1,
        "gradient_accumulation": 1,
        "validation_prompts": "myToken girl",
        "checkpoint_every": 2,
        "training_seed": seed_of(changes.get("name", "test_style")),
        "precision": "fp32",
        "alpha": 4.0,
        "targets": "all-linear",
        "schedule": "constant",
        "warmup_steps": 0,
        "max_steps": 2,
        "gradient_checkpointing": False,
        "validation_steps": 1,
        "validation_guidance": 1.0,
        "validate_every": 1,
    } | changes


# the run of the whole chain, which other tests reuse; rank and alpha differ so that a lost alpha is noticed
CHAIN: dict[str, Any] = {
    "name": "chain",
    "rank": 4,
    "alpha": 2.0,
    "learning_rate": 1e-2,
    "precision": "bf16",
    "max_steps": 2,
    "validate_every": 0,
}


def prepare(folder: str = "portraits", resolution: int = 64, **changes: Any) -> dict[str, Any]:
    """Dataset Prep with a folder below input/."""
    settings = {
        "folder": folder,
        "trigger_word": "myToken",
        "class_description": "face",
        "resolution": resolution,
        "crop_mode": "centre",
        "repeats": 1,
        "caption_source": "auto",
    }
    return node("AnimeLoRA_DatasetPrep", **(settings | changes))


def loader(checkpoint: str, full: bool) -> dict[str, Any]:
    """Core's loader for a full-size checkpoint, ours for a small one."""
    return node("CheckpointLoaderSimple", ckpt_name=checkpoint) if full else node("AnimeLoRA_LoadDemoBase", checkpoint=checkpoint)


def train_and_use(checkpoint: str, *, full: bool, image: str, **training: Any) -> Graph:
    """Folder → dataset → LoRA → image, as in the first template."""
    return {
        "prep": prepare(),
        "train": node("AnimeLoRA_TrainLora", dataset=["prep", 0], checkpoint=checkpoint, **train_settings(**training)),
        "base": loader(checkpoint, full),
        "load": node(
            "AnimeLoRA_LoadLora",
            model=["base", 0],
            clip=["base", 1],
            lora_name="(lora input)",
            strength_model=1.0,
            strength_clip=1.0,
            lora=["train", 0],
        ),
        "photo": node("LoadImage", image=image),
        "paint": node(
            "AnimeLoRA_AnimeImg2Img",
            model=["load", 0],
            clip=["load", 1],
            vae=["base", 2],
            image=["photo", 0],
            trigger_words=["load", 2],
            **PAINT,
        ),
        "save": node("SaveImage", images=["paint", 0], filename_prefix="picture"),
        "both": node("SaveImage", images=["paint", 1], filename_prefix="before_after"),
        "samples": node("SaveImage", images=["train", 1], filename_prefix="samples"),
        "curve": node("SaveImage", images=["train", 2], filename_prefix="curve"),
        "sheet": node("SaveImage", images=["prep", 1], filename_prefix="sheet"),
    }


PAINT: dict[str, Any] = {
    "positive": "girl, high quality",
    "negative": "blurry",
    "strength": 0.65,
    "guidance": 5.0,
    "steps": 3,
    "sampler_name": "euler",
    "scheduler": "normal",
    "seed": 7,
}


def core_img2img(positive: str, model: Link, clip: Link, vae: Link, image: Link) -> Graph:
    """The same img2img with core nodes."""
    return {
        "wanted": node("CLIPTextEncode", clip=clip, text=positive),
        "avoid": node("CLIPTextEncode", clip=clip, text=PAINT["negative"]),
        "latent": node("VAEEncode", pixels=image, vae=vae),
        "sampled": node(
            "KSampler",
            model=model,
            positive=["wanted", 0],
            negative=["avoid", 0],
            latent_image=["latent", 0],
            seed=PAINT["seed"],
            steps=PAINT["steps"],
            cfg=PAINT["guidance"],
            sampler_name=PAINT["sampler_name"],
            scheduler=PAINT["scheduler"],
            denoise=PAINT["strength"],
        ),
        "decoded": node("VAEDecode", samples=["sampled", 0], vae=vae),
    }


def defaults(info: dict[str, Any]) -> dict[str, Any]:
    """Every widget with its default."""
    found = {}
    for group in ("required", "optional"):
        for name, (kind, *rest) in info["input"].get(group, {}).items():
            options = rest[0] if rest else {}
            menu = kind if isinstance(kind, list) else options.get("options", [])
            if isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
                found[name] = options.get("default", menu[0] if menu else "")
    return found
