"""What the example graphs share: the files that they name, and the nodes that most of them have."""

from __future__ import annotations

from typing import Any

from . import notes
from .canvas import Canvas, Node, Output

CHECKPOINT = notes.SD15_NAME
CONTROLNET = notes.CANNY_NAME
LORA_FILE = "my_anime_style.safetensors"  # what the first template trains, and what tests choose in the others
NEGATIVE = "lowres, blurry, bad anatomy, photo"
DEMO_BASE = "AnimeLoRA demo base (embedded)"
DOWNLOAD = {"models": [{"name": CHECKPOINT, "url": notes.SD15_URL, "directory": "checkpoints"}]}


def checkpoint(c: Canvas) -> Node:
    """The loader of the checkpoint that every template names, with its address for the frontend's dialog about missing models."""
    return c.node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT, wide=320, properties=DOWNLOAD)


def train_on_checkpoint(c: Canvas, **values: Any) -> Node:
    """Train LoRA on the checkpoint that every template names, with its address."""
    return c.node("AnimeLoRA_TrainLora", checkpoint=CHECKPOINT, properties=DOWNLOAD, **values)


def load(c: Canvas, base: Node, *, model: str = "MODEL", clip: str = "CLIP", **values: Any) -> Node:
    """Load LoRA on a loader's model and text encoder."""
    return c.node("AnimeLoRA_LoadLora", model=base[model], clip=base[clip], wide=320, **values)


def sampler(c: Canvas, model: Output, wanted: Node, avoid: Node, latent: Output, **values: Any) -> Node:
    """KSampler with the settings that the templates share."""
    settings: dict[str, Any] = {"steps": 25, "cfg": 7.5, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0} | values
    return c.node("KSampler", model=model, positive=wanted["CONDITIONING"], negative=avoid["CONDITIONING"], latent_image=latent, **settings)


def text_to_image(c: Canvas, load: Node, vae: Output, latent: Node, prompt: str, prefix: str) -> list[list[Node]]:
    """From trigger words and prompt to a saved image, in columns."""
    words = c.node("StringConcatenate", "Prompt", string_a=load["trigger_words"], string_b=prompt, delimiter=" ")
    wanted = c.node("CLIPTextEncode", clip=load["clip"], text=words["STRING"])
    avoid = c.node("CLIPTextEncode", "What to avoid", clip=load["clip"], text=NEGATIVE)
    sampled = sampler(c, load["model"], wanted, avoid, latent["LATENT"], seed=42)
    decoded = c.node("VAEDecode", samples=sampled["LATENT"], vae=vae)
    saved = c.node("SaveImage", images=decoded["IMAGE"], filename_prefix=prefix, tall=400)
    return [[words, wanted, avoid], [sampled, decoded, saved]]
