"""Anima's text path, transformer and VAE compute in the trainer what they compute in ComfyUI, on random files of the published layout."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from random_checkpoints.anima import make_anima
from tests.tools.cache import cache_folder
from tests.tools.comfyui import ComfyUI
from trainer.families.anima.anima_family import FAMILY
from trainer.families.anima.tokenizers import qwen_tokens, t5_tokens
from trainer.families.checkpoints.base_checkpoint import BaseCheckpoint

pytestmark = pytest.mark.long  # at full size; tests/unit/families/anima compare small models with diffusers' and transformers'
Arrays = dict[str, "np.ndarray[Any, Any]"]
PROMPTS = ["masterpiece, 1girl, hatsune miku (vocaloid), 青い髪, ~ <3 ♥, score_7", "A girl stands in the rain.\nShe smiles!", ""]


@pytest.fixture(scope="module")
def models() -> Path:
    """Random models: the transformer with two blocks, the others at full size."""
    folder = cache_folder() / "anima-small"
    return folder if (folder / "complete").is_file() else _made(folder)


@pytest.fixture(scope="module")
def outputs(comfyui: ComfyUI, models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Arrays, Arrays]:
    """What ComfyUI and the trainer compute."""
    folder = tmp_path_factory.mktemp("anima")
    given = inputs()
    np.savez(folder / "inputs.npz", **given)  # type: ignore[arg-type]  # numpy's stub takes all names for options
    script = Path(__file__).with_name("anima_in_comfyui.py")
    places = (comfyui.path, models, folder / "inputs.npz", folder / "outputs.npz")
    done = subprocess.run([str(comfyui.python), str(script), *map(str, places)], capture_output=True, text=True, timeout=900)
    if "has no attribute 'anima'" in done.stderr or "KeyError: 't5xxl_ids'" in done.stderr:
        pytest.skip(f"ComfyUI {comfyui.version} does not know Anima")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "missing" not in (done.stdout + done.stderr).lower()
    return dict(np.load(folder / "outputs.npz")), in_trainer(models, given)


def inputs() -> Arrays:
    """Latents of two images of 64 x 48 pixels with their timesteps, an image, and prompts."""
    random = np.random.default_rng(3)
    return {
        "latents": random.standard_normal((2, 16, 6, 8), dtype=np.float32),
        "timesteps": np.array([0.25, 0.8125], dtype=np.float32),
        "pixels": random.random((1, 48, 64, 3), dtype=np.float32),
        "prompts": np.array(PROMPTS),
    }


@torch.inference_mode()
def in_trainer(models: Path, given: Arrays) -> Arrays:
    """The trainer's results in fp32."""
    checkpoint = opened(models)
    text = FAMILY.load_text_encoder(checkpoint, torch.float32, torch.device("cpu"), FAMILY.text_settings(75, 0))
    rows = text.encode(PROMPTS)
    del text
    results = {f"context {number}": row["embeds"].numpy() for number, row in enumerate(rows)}
    denoiser = FAMILY.load_denoiser(checkpoint, torch.float32)
    conditioning = FAMILY.denoiser_inputs(rows[:2], [], torch.device("cpu"), torch.float32)
    latents = torch.from_numpy(given["latents"])
    results["velocity"] = denoiser(latents, torch.from_numpy(given["timesteps"]), **conditioning)[0].numpy()
    del denoiser
    vae: Any = FAMILY.load_vae(checkpoint, torch.float32)
    pixels = torch.from_numpy(given["pixels"]).movedim(-1, 1)
    results["encoded"] = FAMILY.encode_images(vae, pixels * 2 - 1)[0].numpy()
    results["decoded"] = ((FAMILY.decode_latents(vae, latents[:1]) + 1) / 2).movedim(1, -1).numpy()
    return results


def opened(models: Path) -> BaseCheckpoint:
    """The transformer with the text encoder and the VAE that are found beside it."""
    return FAMILY.with_parts(BaseCheckpoint(models / "diffusion_models" / "anima-base-v1.0.safetensors", "file"), "", "")


def difference(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> float:
    """The largest difference relative to the largest value."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("number", range(len(PROMPTS)))
def test_captions_have_the_tokens_of_comfyui(outputs: tuple[Arrays, Arrays], number: int) -> None:
    comfy, _ = outputs
    assert qwen_tokens(PROMPTS[number]) == ([] if PROMPTS[number] == "" else list(comfy[f"qwen3_06b {number}"]))
    assert [*t5_tokens(PROMPTS[number]), 1] == list(comfy[f"t5xxl {number}"])


@pytest.mark.parametrize("number", range(len(PROMPTS)))
def test_the_conditioning_is_that_of_comfyui(outputs: tuple[Arrays, Arrays], number: int) -> None:
    comfy, ours = outputs
    theirs, rows = comfy[f"context {number}"], ours[f"context {number}"]
    assert theirs.shape == (512, 1024)
    assert not theirs[len(rows) :].any()  # the rows of zeros that are added when a batch is built
    assert difference(rows, theirs[: len(rows)]) < 2e-5


def test_the_transformer_predicts_the_velocity_of_comfyui(outputs: tuple[Arrays, Arrays]) -> None:
    comfy, ours = outputs
    assert difference(ours["velocity"], comfy["velocity"]) < 1e-5


def test_the_vae_encodes_and_decodes_as_in_comfyui(outputs: tuple[Arrays, Arrays]) -> None:
    comfy, ours = outputs
    assert difference(ours["encoded"], comfy["encoded"]) < 1e-5
    assert difference(ours["decoded"], comfy["decoded"]) < 1e-5


def _made(folder: Path) -> Path:
    make_anima(folder, "small")
    (folder / "complete").touch()
    return folder
