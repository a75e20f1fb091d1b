"""Anime Img2Img gives the pixels of core's nodes for images of any size."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from random_checkpoints.layout import TINY as SIZE
from tests.server.comfy_server import PromptFailed, Server
from tests.server.files import TINY
from tests.server.graphs import PAINT, Graph, core_img2img, loader, node


def pixels(path: Path) -> np.ndarray[Any, Any]:
    """A saved image as 8-bit RGB."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def both(image: str, trigger_words: str | None, positive: str, batch: int = 1) -> Graph:
    """Anime Img2Img and core nodes with the same settings, each saved."""
    optional = {} if trigger_words is None else {"trigger_words": ["words", 0]}
    ours = node("AnimeLoRA_AnimeImg2Img", model=["base", 0], clip=["base", 1], vae=["base", 2], image=["photos", 0], **PAINT, **optional)
    return {
        "base": loader(TINY, full=False),
        "photo": node("LoadImage", image=image),
        "photos": node("RepeatImageBatch", image=["photo", 0], amount=batch),
        "words": node("PrimitiveString", value=trigger_words or ""),
        "ours": ours,
        "save_ours": node("SaveImage", images=["ours", 0], filename_prefix="ours"),
        "save_both": node("SaveImage", images=["ours", 1], filename_prefix="both"),
        **core_img2img(positive, ["base", 0], ["base", 1], ["base", 2], ["photos", 0]),
        "save_core": node("SaveImage", images=["decoded", 0], filename_prefix="core"),
    }


@pytest.mark.parametrize(
    ("image", "trigger_words", "positive", "batch"),
    [
        ("photo.png", None, "girl, high quality", 2),
        ("odd.png", "myToken, girl", "myToken, girl, high quality", 1),  # 100 × 75: neither side fits the VAE
    ],
    ids=["a batch", "an odd size with trigger words"],
)
def test_pixels_equal_those_of_core_nodes(server: Server, image: str, trigger_words: str | None, positive: str, batch: int) -> None:
    outputs = server.run(both(image, trigger_words, positive, batch))
    ours, core = server.images(outputs, "save_ours"), server.images(outputs, "save_core")
    assert len(ours) == len(core) == batch
    for mine, theirs in zip(ours, core, strict=True):
        np.testing.assert_array_equal(pixels(mine), pixels(theirs))


@pytest.mark.parametrize("name", ["positive", "negative", "trigger_words"])
def test_lone_surrogate_is_refused_with_its_input(server: Server, name: str) -> None:
    texts = {**PAINT, "trigger_words": "myToken", name: "a girl \ud800"}
    models = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2], "image": ["photo", 0]}
    graph = {
        "base": loader(TINY, full=False),
        "photo": node("LoadImage", image="photo.png"),
        "ours": node("AnimeLoRA_AnimeImg2Img", **models, **texts),
        "save": node("PreviewImage", images=["ours", 0]),
    }
    with pytest.raises(PromptFailed, match=f"The text of {name} holds half a character"):
        server.run(graph)


def control_lora(path: Path) -> Path:
    """A random ControlNet for the tiny model, as a small Control-LoRA that shares the model's layers."""
    generator = np.random.default_rng(11)
    first, second, third, last = SIZE.unet
    layers = {"middle_block_out.0": (last, last, 1)}
    blocks = [first] * 4 + [second] * 3 + [third] * 3 + [last] * 2  # SD 1.x: two blocks a level, then one that halves the size
    for index, width in enumerate(blocks):
        layers[f"zero_convs.{index}.0"] = (width, width, 1)
    hint = [3, 16, 16, 32, 32, 96, 96, 256, first]
    for index, (inner, outer) in enumerate(pairwise(hint)):
        layers[f"input_hint_block.{2 * index}"] = (outer, inner, 3)
    tensors = {"lora_controlnet": np.zeros(1, np.float16)}
    for name, (outer, inner, side) in layers.items():
        scale = 0.5 / np.sqrt(inner * side * side)
        tensors[f"{name}.weight"] = (generator.standard_normal((outer, inner, side, side)) * scale).astype(np.float16)
        tensors[f"{name}.bias"] = np.zeros(outer, np.float16)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("own_image", [True, False], ids=["an image of its own", "the photo itself"])
def test_pixels_with_a_controlnet_equal_those_of_core_nodes(server: Server, own_image: bool) -> None:
    control_lora(server.base / "models" / "controlnet" / "control.safetensors")
    graph = both("photo.png", None, PAINT["positive"])
    plain = pixels(server.images(server.run(graph), "save_ours")[0])
    graph["outlines"] = node("ImageInvert", image=["photo", 0])
    graph["net"] = node("ControlNetLoader", control_net_name="control.safetensors")
    hint = ["outlines", 0] if own_image else ["photos", 0]
    graph["ours"]["inputs"] |= {"control_net": ["net", 0], "control_strength": 0.7} | ({"control_image": hint} if own_image else {})
    graph["controlled"] = node(
        "ControlNetApplyAdvanced",
        **{"positive": ["wanted", 0], "negative": ["avoid", 0], "control_net": ["net", 0], "image": hint, "vae": ["base", 2]},
        **{"strength": 0.7, "start_percent": 0.0, "end_percent": 1.0},
    )
    graph["sampled"]["inputs"] |= {"positive": ["controlled", 0], "negative": ["controlled", 1]}
    outputs = server.run(graph)
    ours = pixels(server.images(outputs, "save_ours")[0])
    np.testing.assert_array_equal(ours, pixels(server.images(outputs, "save_core")[0]))
    assert (ours != plain).any(), "the ControlNet did nothing"


def test_before_after_shows_the_photo_beside_the_result(server: Server) -> None:
    outputs = server.run(both("odd.png", None, PAINT["positive"]))
    pair = pixels(server.images(outputs, "save_both")[0])
    picture = pixels(server.images(outputs, "save_ours")[0])
    height, width = picture.shape[:2]
    assert (height, width) == (72, 96)
    assert pair.shape == (height, 2 * width + 8, 3)
    np.testing.assert_array_equal(pair[:, width + 8 :], picture)
    photo = pixels(server.base / "input" / "odd.png")
    top, left = (75 - 72) // 2, (100 - 96) // 2  # ComfyUI crops at the centre
    np.testing.assert_array_equal(pair[:, :width], photo[top : top + height, left : left + width])


def test_image_too_small_for_the_vae_is_refused(server: Server) -> None:
    graph = both("photo.png", None, PAINT["positive"])
    graph["photos"] = node("ImageScale", image=["photo", 0], upscale_method="area", width=4, height=40, crop="disabled")
    kept = {name: graph[name] for name in ("base", "photo", "photos", "ours", "save_ours")}
    with pytest.raises(PromptFailed, match="4 × 40 pixels; the VAE needs at least 8 × 8") as failure:
        server.run(kept)
    assert failure.value.node == "AnimeLoRA_AnimeImg2Img"
