"""ComfyUI with the exported LoRA predicts what the trainer predicts with the weights that it trained."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.server.comfy_server import ROOT, Server
from tests.server.files import FULL, TINY
from tests.server.graphs import CHAIN, core_img2img, node, prepare, train_settings
from tests.tools.parameters import mark_long

PROMPT = "myToken girl, high quality"
RANK, ALPHA = CHAIN["rank"], CHAIN["alpha"]


def inputs() -> dict[str, Any]:
    """Latents of a 64 px image, a timestep and a prompt."""
    generator = np.random.default_rng(5)
    return {
        "latents": generator.standard_normal((1, 4, 8, 8), dtype=np.float32),
        "timestep": np.array([500.0], dtype=np.float32),
        "prompt": np.array(PROMPT),
    }


def in_trainer(checkpoint: Path, run: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The trainer's own UNet with the fp32 weights of the run's last state, before export rounded them."""
    import torch

    from trainer.adapters import adapter
    from trainer.families import family_of, open_checkpoint
    from trainer.runs import states

    given = inputs()
    opened = open_checkpoint(str(checkpoint))
    family = family_of(opened)
    unet: Any = family.load_denoiser(opened, torch.float32)
    context = family.load_text_encoder(opened, torch.float32, torch.device("cpu")).encode([PROMPT])[0]["embeds"].float()[None]
    arguments = (torch.from_numpy(given["latents"]), torch.from_numpy(given["timestep"]), context)
    vae: Any = family.load_vae(opened, torch.float32)
    with torch.inference_mode():
        base = unet(*arguments).sample.numpy()
        picture = ((vae.decode(arguments[0]).sample + 1) / 2).clamp(0, 1)
        encoded = vae.encode(picture * 2 - 1).latent_dist.mode()
    saved, values = states.newest(run / "checkpoints")
    assert saved is not None
    assert values is not None
    weights = values["lora"]
    adapter.inject(unet, sorted({name.rpartition(".")[0] for name in weights}), rank=RANK, alpha=ALPHA, seed=0)
    adapter.load_state(unet, weights)
    with torch.inference_mode():
        styled = unet(*arguments).sample.numpy()
    images = {"picture": picture.movedim(1, -1).numpy(), "encoded": encoded.numpy()}
    return {"context": context.numpy(), "base": base, "styled": styled, **images}


def in_comfyui(server: Server, checkpoint: Path, lora: Path, folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The same with this server's ComfyUI, in a separate process."""
    np.savez(folder / "inputs.npz", **inputs())
    script = Path(__file__).with_name("unet_in_comfyui.py")
    places = (server.comfyui, ROOT, checkpoint, lora, folder / "inputs.npz", folder / "outputs.npz")
    done = subprocess.run([str(server.python), str(script), *map(str, places)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "lora key not loaded" not in done.stdout + done.stderr
    return dict(np.load(folder / "outputs.npz"))


def difference(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Root mean square of ``a - b`` relative to that of ``b``."""
    return float(np.sqrt(np.mean((a - b) ** 2)) / np.sqrt(np.mean(b**2)))


@pytest.mark.parametrize("base", mark_long(["checkpoint", "demo base"], "demo base"))
def test_comfyui_and_trainer_predict_the_same_noise(server: Server, tmp_path: Path, base: str) -> None:
    name, settings = (FULL if server.thorough else TINY), CHAIN | {"name": "on the checkpoint"}
    checkpoint = (server.base / "models" / "checkpoints" / name).resolve()
    if base == "demo base":
        checkpoint = ROOT / "demo" / "base" / "animelora-base.safetensors"
        if not checkpoint.is_file():
            pytest.skip("the demo base is not built: python -m demo.recipe")
        name, settings = "AnimeLoRA demo base (embedded)", CHAIN | {"name": "on the demo base", "precision": "fp32"}
    training = node("AnimeLoRA_TrainLora", dataset=["prep", 0], checkpoint=name, **train_settings(**settings))
    server.run({"prep": prepare(), "train": training})
    run = next((server.base / "output" / "animelora" / "runs").glob(f"{settings['name']}-*"))
    comfy = in_comfyui(server, checkpoint, server.base / "models" / "loras" / f"{settings['name']}.safetensors", tmp_path)
    ours = in_trainer(checkpoint, run)

    assert difference(comfy["context"], ours["context"]) < 1e-4  # the prompt is encoded alike
    assert difference(comfy["base"], ours["base"]) < 1e-4
    assert difference(comfy["picture"], ours["picture"]) < 1e-4
    assert difference(comfy["encoded"], ours["encoded"]) < 1e-4
    assert difference(comfy["styled"], ours["styled"]) < 1e-3
    # the LoRA's own contribution: the file holds each factor in fp16, with a relative rounding of 2^-11
    added, wanted = comfy["styled"] - comfy["base"], ours["styled"] - ours["base"]
    assert np.abs(wanted).max() > 100 * np.abs(comfy["base"] - ours["base"]).max(), "the LoRA does too little to compare"
    assert difference(added, wanted) < 1e-2


def test_demo_base_works_with_core_nodes(server: Server) -> None:
    """Text to image with our loader and core nodes, without a missing key in the log."""
    if not (ROOT / "demo" / "base" / "animelora-base.safetensors").is_file():
        pytest.skip("the demo base is not built: python -m demo.recipe")
    before = len(server.log())
    graph = {
        "base": node("AnimeLoRA_LoadDemoBase", checkpoint="AnimeLoRA demo base (embedded)"),
        "blank": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "pixels": node("VAEDecode", samples=["blank", 0], vae=["base", 2]),
        **core_img2img("portrait of a woman with long red hair", ["base", 0], ["base", 1], ["base", 2], ["pixels", 0]),
        "save": node("SaveImage", images=["decoded", 0], filename_prefix="demo"),
    }
    picture = server.images(server.run(graph), "save")[0]
    with Image.open(picture) as image:
        assert image.size == (128, 128)
        assert np.asarray(image.convert("L")).std() > 5, "a flat picture"
    log = server.log()[before:].lower()
    assert "missing" not in log
    assert "unet unexpected" not in log
