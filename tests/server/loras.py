"""A small random LoRA file, and graphs that load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from random_checkpoints.layout import TINY as SIZE
from tests.server.comfy_server import Server
from tests.server.files import TINY
from tests.server.graphs import PAINT, Graph, Link, core_img2img, loader, node

RANK = 2


def attention_lora(path: Path, *, context: int, prefix: str = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0") -> Path:
    """Write a kohya file for one cross-attention of a model whose text embeddings are ``context`` wide, without the pack's code."""
    generator = np.random.default_rng(3)
    width = SIZE.unet[0]
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for name, inner in (("attn2_to_k", context), ("attn2_to_v", context), ("attn1_to_q", width)):
        key = f"{prefix}_{name}"
        tensors[f"{key}.lora_down.weight"] = generator.standard_normal((RANK, inner)).astype(np.float16)
        tensors[f"{key}.lora_up.weight"] = generator.standard_normal((width, RANK)).astype(np.float16)
        tensors[f"{key}.alpha"] = np.array(1.0, dtype=np.float16)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"modelspec.trigger_phrase": "myToken, blue hair", "ss_base_model_version": "sd_v1"})
    return path


def load_lora(name: str, **changes: Any) -> Graph:
    """Load LoRA with the tiny model."""
    inputs: dict[str, Any] = {"model": ["base", 0], "clip": ["base", 1], "lora_name": name, "strength_model": 0.8, "strength_clip": 0.5}
    return {"base": loader(TINY, full=False), "load": node("AnimeLoRA_LoadLora", **(inputs | changes))}


def sampled(server: Server, model: Link, clip: Link, graph: Graph) -> np.ndarray[Any, Any]:
    """The image that core's nodes generate with a model."""
    whole = {
        **graph,
        "photo": node("LoadImage", image="photo.png"),
        **core_img2img(PAINT["positive"], model, clip, ["base", 2], ["photo", 0]),
        "save": node("SaveImage", images=["decoded", 0], filename_prefix="lora"),
    }
    with Image.open(server.images(server.run(whole), "save")[0]) as picture:
        return np.asarray(picture.convert("RGB"))


def lora_folder(server: Server) -> Path:
    """The server's LoRA folder."""
    return server.base / "models" / "loras"
