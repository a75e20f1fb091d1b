"""ComfyUI with the exported LoRA predicts what the trainer predicts with the weights that it trained."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from tests.server.comfy_server import ROOT, Server
from tests.server.conftest import FULL, TINY
from tests.server.graphs import CHAIN, node, prepare, train_settings

PROMPT = "myToken girl, high quality"
RANK, ALPHA = CHAIN["rank"], CHAIN["alpha"]


def inputs() -> dict[str, Any]:
    """Latents of a 64 px picture, a timestep and a prompt."""
    generator = np.random.default_rng(5)
    return {
        "latents": generator.standard_normal((1, 4, 8, 8), dtype=np.float32),
        "timestep": np.array([500.0], dtype=np.float32),
        "prompt": np.array(PROMPT),
    }


def in_trainer(checkpoint: Path, run: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The trainer's own UNet with the fp32 weights of the run's last state, before export rounded them."""
    import torch

    from trainer import adapter, resume
    from trainer.families import family_of, open_checkpoint

    given = inputs()
    opened = open_checkpoint(str(checkpoint))
    family = family_of(opened)
    unet: Any = family.load_unet(opened, torch.float32)
    context = family.load_text_encoder(opened, torch.float32, torch.device("cpu")).encode([PROMPT])[0]["embeds"].float()[None]
    arguments = (torch.from_numpy(given["latents"]), torch.from_numpy(given["timestep"]), context)
    with torch.inference_mode():
        base = unet(*arguments).sample.numpy()
    saved, values = resume.newest(run / "checkpoints")
    assert saved is not None
    assert values is not None
    weights = values["lora"]
    adapter.inject(unet, sorted({name.rpartition(".")[0] for name in weights}), rank=RANK, alpha=ALPHA, seed=0)
    adapter.load_state(unet, weights)
    with torch.inference_mode():
        styled = unet(*arguments).sample.numpy()
    return {"context": context.numpy(), "base": base, "styled": styled}


def in_comfyui(server: Server, checkpoint: Path, lora: Path, folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The same in the ComfyUI that this server runs, in a process of its own."""
    np.savez(folder / "inputs.npz", **inputs())
    script = Path(__file__).with_name("unet_in_comfyui.py")
    places = (server.comfyui, ROOT, checkpoint, lora, folder / "inputs.npz", folder / "outputs.npz")
    done = subprocess.run([str(server.python), str(script), *map(str, places)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "lora key not loaded" not in done.stdout + done.stderr
    return dict(np.load(folder / "outputs.npz"))


def difference(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Root mean square of ``a - b`` relative to that of ``b``."""
    return float(np.sqrt(np.mean((a - b) ** 2)) / np.sqrt(np.mean(b**2)))


def test_comfyui_and_trainer_predict_the_same_noise(server: Server, tmp_path: Path) -> None:
    name = FULL if server.full_size else TINY
    settings = train_settings(**CHAIN)
    server.run({"prep": prepare(), "train": node("AnimeLoRA_TrainLora", dataset=["prep", 0], checkpoint=name, **settings)}, seconds=600)
    run = next((server.base / "output" / "animelora" / "runs").glob("chain-*"))
    checkpoint = (server.base / "models" / "checkpoints" / name).resolve()
    comfy = in_comfyui(server, checkpoint, server.base / "models" / "loras" / "chain.safetensors", tmp_path)
    ours = in_trainer(checkpoint, run)

    assert difference(comfy["context"], ours["context"]) < 1e-4  # the same prompt, read alike
    assert difference(comfy["base"], ours["base"]) < 1e-4
    assert difference(comfy["styled"], ours["styled"]) < 1e-3
    # what the LoRA adds, by itself: the file holds it in fp16, with 11 bits (relative rounding 2^-11) in each factor
    added, wanted = comfy["styled"] - comfy["base"], ours["styled"] - ours["base"]
    assert np.abs(wanted).max() > 100 * np.abs(comfy["base"] - ours["base"]).max(), "the LoRA does too little to compare"
    assert difference(added, wanted) < 1e-2
