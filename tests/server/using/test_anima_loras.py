"""LoRAs for Anima on the canvas: Load LoRA, LoRA Stack, Anime Img2Img and Style Compare, with latents of 16 channels and a frame axis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from tests.server.anima import anima_loaders, wide_anima
from tests.server.comfy_server import PromptFailed, Server
from tests.server.graphs import node
from tests.server.loras import attention_lora, load_lora, lora_folder

WIDTH, RANK = 2048, 2
SAMPLING = {"steps": 2, "sampler_name": "er_sde", "scheduler": "simple", "seed": 7}
TEXTS = {"positive": "1girl, smile", "negative": "worst quality"}


@pytest.fixture(scope="module")
def models(server: Server) -> Iterator[dict[str, str]]:
    """Random models with two blocks."""
    with wide_anima(server) as names:
        yield names


def anima_lora(path: Path, blocks: int = 2, *, diffusers_names: bool = False) -> Path:
    """Write a LoRA for the attention of each block, the adapter and Qwen3, without the pack's code; kohya's names or diffusers'."""
    generator = np.random.default_rng(5)
    layers = {f"lora_unet_blocks_{index}_cross_attn_v_proj": (WIDTH, 1024) for index in range(blocks)}
    layers |= {f"lora_unet_blocks_{index}_mlp_layer2": (WIDTH, 8192) for index in range(blocks)}
    layers |= {"lora_unet_llm_adapter_blocks_0_mlp_0": (4096, 1024), "lora_te_layers_0_self_attn_o_proj": (1024, 2048)}
    down, up = "lora_down", "lora_up"
    if diffusers_names:
        layers = {f"transformer.transformer_blocks.{index}.attn2.to_v": (WIDTH, 1024) for index in range(blocks)}
        layers |= {"text_conditioner.blocks.0.mlp.0": (4096, 1024)}
        down, up = "lora_A", "lora_B"
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for key, (outputs, inputs) in layers.items():
        tensors[f"{key}.{down}.weight"] = (generator.standard_normal((RANK, inputs)) * 0.1).astype(np.float16)
        tensors[f"{key}.{up}.weight"] = (generator.standard_normal((outputs, RANK)) * 0.1).astype(np.float16)
        if not diffusers_names:
            tensors[f"{key}.alpha"] = np.array(1.0, dtype=np.float16)
    save_file(tensors, path)
    return path


def loaded(name: str) -> dict[str, Any]:
    """Load LoRA on these models."""
    return node("AnimeLoRA_LoadLora", model=["unet", 0], clip=["clip", 0], lora_name=name, strength_model=1.0, strength_clip=1.0)


def pixels(path: Path) -> np.ndarray[Any, Any]:
    """A saved image as 8-bit RGB."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def img2img(image: list[Any], **changes: Any) -> dict[str, Any]:
    """Anime Img2Img with the LoRA."""
    parts = {"model": ["load", 0], "clip": ["load", 1], "vae": ["vae", 0], "image": image}
    return node("AnimeLoRA_AnimeImg2Img", **parts, **TEXTS, **{"strength": 0.6, "guidance": 4.0, **SAMPLING, **changes})


def test_photos_become_the_images_of_core_nodes(server: Server, models: dict[str, str]) -> None:
    anima_lora(lora_folder(server) / "anima.safetensors")
    core = {
        "wanted": node("CLIPTextEncode", clip=["load", 1], text=TEXTS["positive"]),
        "avoid": node("CLIPTextEncode", clip=["load", 1], text=TEXTS["negative"]),
        "latent": node("VAEEncode", pixels=["photo", 0], vae=["vae", 0]),
        "sampled": node("KSampler", model=["load", 0], positive=["wanted", 0], negative=["avoid", 0], latent_image=["latent", 0],
                        cfg=4.0, denoise=0.6, **SAMPLING),
        "decoded": node("VAEDecode", samples=["sampled", 0], vae=["vae", 0]),
    }  # fmt: skip
    graph = {
        **anima_loaders(models),
        "load": loaded("anima.safetensors"),
        "photo": node("LoadImage", image="photo.png"),
        "inverted": node("ImageInvert", image=["photo", 0]),
        "photos": node("ImageBatch", image1=["photo", 0], image2=["inverted", 0]),
        **core,
        "ours": img2img(["photo", 0]),
        "unchanged": img2img(["photos", 0], strength=0.0),
        "encoded": node("VAEDecode", samples=["latent", 0], vae=["vae", 0]),
        "save ours": node("SaveImage", images=["ours", 0], filename_prefix="anima ours"),
        "save core": node("SaveImage", images=["decoded", 0], filename_prefix="anima core"),
        "save unchanged": node("SaveImage", images=["unchanged", 0], filename_prefix="anima unchanged"),
        "save encoded": node("SaveImage", images=["encoded", 0], filename_prefix="anima encoded"),
    }
    outputs = server.run(graph)
    (ours,), (theirs,) = server.images(outputs, "save ours"), server.images(outputs, "save core")
    np.testing.assert_array_equal(pixels(ours), pixels(theirs))
    assert ("load", "18 of 18 keys used") in server.texts
    # each photo of a batch is encoded by itself, not as a frame of one video
    first, second = server.images(outputs, "save unchanged")
    (encoded,) = server.images(outputs, "save encoded")
    assert np.abs(pixels(first).astype(int) - pixels(encoded)).max() <= 1  # decoded in another batch
    assert (pixels(second) != pixels(first)).any()
    assert "lora key not loaded" not in server.log()


def test_style_compare_and_stack_read_names_of_diffusers(server: Server, models: dict[str, str]) -> None:
    anima_lora(lora_folder(server) / "names.safetensors", diffusers_names=True)
    compare = {"model": ["unet", 0], "clip": ["clip", 0], "vae": ["vae", 0], "lora_name": "names.safetensors"}
    compare |= {"prompts": "1girl", "negative": "", "lora_strengths": "1", "guidances": "4", "img2img_strengths": "0.6"}
    row = '[{"on": true, "name": "names.safetensors", "strength": 1}]'
    graph = {
        **anima_loaders(models),
        "compare": node("AnimeLoRA_StyleCompare", **compare, **{**SAMPLING, "steps": 1}, width=64, height=64, add_trigger_words=False),
        "grid": node("SaveImage", images=["compare", 1], filename_prefix="anima compare"),
        "stack": node("AnimeLoRA_LoraStack", model=["unet", 0], clip=["clip", 0], loras=row),
        "show": node("PreviewAny", source=["stack", 2]),
    }
    without, with_lora = (pixels(path) for path in server.images(server.run(graph), "grid"))
    assert without.shape == with_lora.shape == (64, 64, 3)
    assert (without != with_lora).any()
    assert ("stack", "names.safetensors: 9 of 9 keys used") in server.texts


def test_loras_for_another_model_are_refused_by_name(server: Server, models: dict[str, str]) -> None:
    anima_lora(lora_folder(server) / "anima.safetensors")
    with pytest.raises(PromptFailed, match=r"anima\.safetensors was made for Anima and does not fit this model"):
        server.run(load_lora("anima.safetensors") | {"show": node("PreviewAny", source=["load", 2])})
    anima_lora(lora_folder(server) / "deep.safetensors", blocks=28)
    attention_lora(lora_folder(server) / "sdxl.safetensors", context=2048)
    graph = {**anima_loaders(models), "show": node("PreviewAny", source=["load", 2])}
    with pytest.raises(PromptFailed, match="made for Anima with 28 blocks and the model has 2"):
        server.run(graph | {"load": loaded("deep.safetensors")})
    with pytest.raises(PromptFailed, match="was made for Stable Diffusion XL and does not fit this model"):
        server.run(graph | {"load": loaded("sdxl.safetensors")})
