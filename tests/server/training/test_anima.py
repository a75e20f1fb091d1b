"""Anima on the canvas, from a folder of images to an image: its files found or chosen, trained once, compared by epoch, resumed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from random_checkpoints.anima import DENOISER, TEXT_ENCODER, VAE
from tests.server.anima import anima_loaders, wide_anima
from tests.server.comfy_server import Server
from tests.server.files import link
from tests.server.graphs import Graph, node, prepare, train_settings
from trainer.lorafile import read_lora

MODULES = 20  # ten in each of two blocks
MODEL = "[diffusion_models] {}"
SAMPLING = {"steps": 1, "sampler_name": "euler", "scheduler": "simple", "seed": 7}
NAME = "anima_chain"


@pytest.fixture(scope="module")
def models(server: Server) -> Iterator[dict[str, str]]:
    """Random models with two blocks."""
    with wide_anima(server) as names:
        yield names


def trained(models: dict[str, str]) -> Graph:
    """Dataset Prep and Train LoRA: two steps, each saved, with text encoder and VAE chosen by hand."""
    options = {"text_encoder": models["clip"], "vae": models["vae"]}
    settings = train_settings(
        name=NAME, checkpoint_every=1, learning_rate=1e-2, precision="bf16", validate_every=0, preset="style-anima", rank=2, alpha=2.0
    )
    checkpoint = MODEL.format(models["unet"])
    return {
        "prep": prepare(),
        "options": node("AnimeLoRA_TrainOptions", **options),
        "train": node("AnimeLoRA_TrainLora", dataset=["prep", 0], options=["options", 0], checkpoint=checkpoint, **settings),
    }


def compare(model: str, **changes: Any) -> dict[str, Any]:
    """Epoch Compare at full strength."""
    inputs: dict[str, Any] = {"model": [model, 0], "clip": ["clip", 0], "vae": ["vae", 0], "run": "(lora input)", "lora": ["train", 0]}
    inputs |= {"prompts": "1girl", "negative": "", "saved_steps": "", "lora_strengths": "1", "guidance": 1.0, **SAMPLING}
    inputs |= {"width": 64, "height": 64, "add_trigger_words": True, **changes}
    return node("AnimeLoRA_EpochCompare", **inputs)


def painted(lora: str) -> Graph:
    """A LoRA's image, as in the template."""
    load = {"model": ["unet", 0], "clip": ["clip", 0], "lora_name": "(lora input)", "strength_model": 1.0, "strength_clip": 1.0}
    return {
        "load": node("AnimeLoRA_LoadLora", **load, lora=[lora, 0]),
        "words": node("StringConcatenate", string_a="masterpiece, best quality,", string_b=["load", 2], delimiter=" "),
        "wanted": node("CLIPTextEncode", clip=["load", 1], text=["words", 0]),
        "avoid": node("CLIPTextEncode", clip=["load", 1], text="worst quality"),
        "size": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "sampled": node("KSampler", model=["load", 0], positive=["wanted", 0], negative=["avoid", 0], latent_image=["size", 0],
                        cfg=4.0, denoise=1.0, **SAMPLING),
        "decoded": node("VAEDecode", samples=["sampled", 0], vae=["vae", 0]),
        "save": node("SaveImage", images=["decoded", 0], filename_prefix="anima chain"),
    }  # fmt: skip


def events(server: Server, name: str) -> list[dict[str, Any]]:
    """The event stream of the only run of a LoRA's name."""
    (run,) = (server.base / "output" / "animelora" / "runs").glob(f"{name}-*")
    return [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def pixels(path: Path) -> np.ndarray[Any, Any]:
    """A saved image as 8-bit RGB."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def assert_clean(log: str) -> None:
    """The log has no warnings about the LoRA and no traceback."""
    for words in ("lora key not loaded", "NOT LOADED", "Traceback", "ERROR lora", "keys were not used"):
        assert words not in log


@pytest.mark.long
def test_chain_with_epochs_trains_once(server: Server, models: dict[str, str]) -> None:
    before, texts = len(server.log()), len(server.texts)
    graph = {
        **trained(models),
        **anima_loaders(models),
        "compare": compare("unet"),
        "cells": node("SaveImage", images=["compare", 1], filename_prefix="anima epoch"),
        "diffusion": node("ModelSamplingDiscrete", model=["unet", 0], sampling="eps", zsnr=False),
        "warned": compare("diffusion", saved_steps="2"),
        "grid": node("PreviewImage", images=["warned", 0]),
        "pick": node("AnimeLoRA_PickEpoch", run="(lora input)", step=1, save_as="anima pick", lora=["train", 0]),
        **painted("pick"),
    }
    outputs = server.run(graph)
    assert_clean(server.log()[before:])
    assert ("load", f"{3 * MODULES} of {3 * MODULES} keys used") in server.texts[texts:]
    without, first, second = (pixels(path) for path in server.images(outputs, "cells"))
    assert without.shape == (64, 64, 3)
    assert (without != first).any() and (first != second).any()
    (image,) = server.images(outputs, "save")
    assert len(np.unique(pixels(image))) > 10, "a flat picture"
    (warned,) = [text for owner, text in server.texts[texts:] if owner == "warned" and text.endswith("image 2 of 2")]
    assert "was trained for a rectified flow" in warned and "Put ModelSamplingAuraFlow before this node." in warned

    (run,) = (server.base / "output" / "animelora" / "runs").glob(f"{NAME}-*")
    kept, saved = (
        load_file(server.base / "models" / "loras" / "anima pick.safetensors"),
        next(run.glob("checkpoints/step-*1/*.safetensors")),
    )
    assert len(kept) == 3 * MODULES
    assert all(np.array_equal(kept[key], tensor) for key, tensor in load_file(saved).items())

    told = events(server, NAME)
    assert [event["event"] for event in told if event["event"] in ("step", "done")] == ["step", "step", "done"]
    (plan,) = [event for event in told if event["event"] == "plan"]
    assert (plan["family"], plan["text_encoder"], plan["vae"]) == ("anima", Path(TEXT_ENCODER).name, Path(VAE).name)  # the links' targets
    server.forget()  # else ComfyUI's cache would answer instead of the node
    server.run(trained(models))
    assert events(server, NAME) == told, "it trained again"
    server.wait_for_text("found a finished run")
    assert_clean(server.log()[before:])


@pytest.fixture
def tiny_models(server: Server, tiny_anima: Path) -> None:
    """The three files of a tiny model, which ComfyUI does not know, in the server's folders."""
    for name in (DENOISER, TEXT_ENCODER, VAE):
        target = server.base / "models" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            link(tiny_anima.parents[1] / name, target)


@pytest.mark.usefixtures("tiny_models")
def test_model_in_three_files_is_trained(server: Server) -> None:
    short = {"max_steps": 1, "validate_every": 1, "validation_steps": 1, "precision": "fp32", "gradient_accumulation": 1, "rank": 2}
    checkpoint = MODEL.format(Path(DENOISER).name)
    train = node("AnimeLoRA_TrainLora", dataset=["prep", 0], checkpoint=checkpoint, name="anima_style", preset="style-anima", **short)
    server.run({"prep": prepare(), "train": train})
    (plan,) = [event for event in events(server, "anima_style") if event["event"] == "plan"]
    assert (plan["family"], plan["text_encoder"], plan["vae"]) == ("anima", Path(TEXT_ENCODER).name, Path(VAE).name)
    assert read_lora(server.base / "models" / "loras" / "anima_style.safetensors").family == "anima"


@pytest.mark.usefixtures("tiny_models")
def test_cancelled_training_resumes_to_the_same_bits(server: Server) -> None:
    name, length = "anima_cancelled", 30
    settings = train_settings(name=name, max_steps=length, epochs=length, checkpoint_every=0, validate_every=0, rank=2)
    checkpoint = MODEL.format(Path(DENOISER).name)
    graph = {"prep": prepare(), "train": node("AnimeLoRA_TrainLora", dataset=["prep", 0], checkpoint=checkpoint, **settings)}
    seen = len(server.messages)
    prompt = server.queue(graph)
    wait_for_a_step(server, seen)
    server.interrupt()
    assert [kind for kind, _ in server.wait(prompt)["status"]["messages"]][-1] == "execution_interrupted"
    assert events(server, name)[-1]["event"] == "stopped"
    server.run(graph)
    starts = [event["start_step"] for event in events(server, name) if event["event"] == "plan"]
    assert len(starts) == 2 and 0 < starts[1] < length
    lora = server.base / "models" / "loras" / f"{name}.safetensors"
    resumed = load_file(lora)

    (run,) = (server.base / "output" / "animelora" / "runs").glob(f"{name}-*")
    shutil.rmtree(run)  # else the next run would find it
    lora.unlink()
    server.run(graph)
    assert [event["start_step"] for event in events(server, name) if event["event"] == "plan"] == [0]
    whole = load_file(lora)
    assert all(np.array_equal(resumed[key], whole[key]) for key in whole)


def wait_for_a_step(server: Server, seen: int) -> None:
    """Wait until the browser has received a step."""
    end = time.monotonic() + 600
    while time.monotonic() < end:
        if any(m["type"] == "animelora.train" and m["data"]["event"] == "step" for m in server.messages[seen:]):
            return
        time.sleep(0.02)
    pytest.fail(f"training did not start:\n{server.log()[-3000:]}")
