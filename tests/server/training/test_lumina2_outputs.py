"""Lumina 2's text encoder, transformer and VAE compute in the trainer what they compute in ComfyUI, on a small random checkpoint."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tools.comfyui import ComfyUI
from trainer.families import open_checkpoint
from trainer.families.lumina2.lumina2_family import FAMILY
from trainer.families.lumina2.text import PROMPT_START, SYSTEM_PROMPT, GemmaText

pytestmark = pytest.mark.long  # tests/unit/families/lumina2 compare with diffusers' and transformers' models
Arrays = dict[str, "np.ndarray[Any, Any]"]
CPU = torch.device("cpu")
PROMPTS = ["masterpiece, 1girl, hatsune miku (vocaloid), 青い髪, ~ <3 ♥", "A girl stands in the rain.\nShe smiles!", ""]
WEIGHTED = [("a cat ", 1.0), ("sleeps", 1.4), (" on a chair, ", 1.0), ("rain", 0.5)]


@pytest.fixture(scope="module")
def outputs(comfyui: ComfyUI, tiny_lumina2: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Arrays, Arrays]:
    """What ComfyUI and the trainer compute."""
    folder = tmp_path_factory.mktemp("lumina2")
    given = inputs()
    np.savez(folder / "inputs.npz", **given)  # type: ignore[arg-type]  # numpy's stub takes all names for options
    script = Path(__file__).with_name("lumina2_in_comfyui.py")
    places = (comfyui.path, tiny_lumina2, folder / "inputs.npz", folder / "outputs.npz")
    done = subprocess.run([str(comfyui.python), str(script), *map(str, places)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return dict(np.load(folder / "outputs.npz")), in_trainer(tiny_lumina2, given)


def whole(prompt: str) -> str:
    """A prompt as it is typed into ComfyUI, after the system prompt."""
    return f"{SYSTEM_PROMPT} {PROMPT_START} {prompt}" if prompt else ""


def inputs() -> Arrays:
    """Latents of two images of 64 x 48 pixels with their timesteps, an image in -1..1, and prompts."""
    random = np.random.default_rng(3)
    weighted = "".join(text if weight == 1 else f"({text}:{weight})" for text, weight in WEIGHTED)
    return {
        "latents": random.standard_normal((2, 16, 6, 8), dtype=np.float32),
        "timesteps": np.array([0.25, 0.8125], dtype=np.float32),
        "pixels": random.random((1, 3, 48, 64), dtype=np.float32) * 2 - 1,
        "prompts": np.array([whole(prompt) for prompt in PROMPTS]),
        "weighted": np.array(whole(weighted)),
    }


@torch.inference_mode()
def in_trainer(path: Path, given: Arrays) -> Arrays:
    """The trainer's results in fp32."""
    checkpoint = open_checkpoint(str(path))
    text = FAMILY.load_text_encoder(checkpoint, torch.float32, CPU, FAMILY.text_settings(75, 0))
    rows = text.encode(PROMPTS)
    results = {f"context {number}": row["embeds"].numpy() for number, row in enumerate(rows)}
    results |= {f"tokens {number}": ids(text, prompt) for number, prompt in enumerate(PROMPTS)}
    results["weighted"] = text.apply_weights(WEIGHTED, {}, {})["embeds"].numpy()
    denoiser = FAMILY.load_denoiser(checkpoint, torch.float32)
    conditioning = FAMILY.denoiser_inputs(rows[:2], [], CPU, torch.float32)
    latents = torch.from_numpy(given["latents"])
    results["velocity"] = denoiser(latents, torch.from_numpy(given["timesteps"]), **conditioning)[0].numpy()
    vae: Any = FAMILY.load_vae(checkpoint, torch.float32)
    results["encoded"] = FAMILY.encode_images(vae, torch.from_numpy(given["pixels"]))[0].numpy()
    results["decoded"] = FAMILY.decode_latents(vae, latents[:1]).numpy()
    return results


def ids(text: GemmaText, prompt: str) -> np.ndarray[Any, Any]:
    """The token ids of ``prompt``."""
    return text.tokenize([prompt])[0]["gemma"].numpy()


def difference(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> float:
    """The largest difference relative to the largest value."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("number", range(len(PROMPTS)))
def test_the_conditioning_is_that_of_comfyui(outputs: tuple[Arrays, Arrays], number: int) -> None:
    comfy, ours = outputs
    assert list(ours[f"tokens {number}"]) == list(comfy[f"tokens {number}"])
    assert difference(ours[f"context {number}"], comfy[f"context {number}"]) < 2e-5


def test_weights_of_a_prompt_act_as_in_comfyui(outputs: tuple[Arrays, Arrays]) -> None:
    comfy, ours = outputs
    assert difference(ours["weighted"], comfy["weighted"]) < 2e-5


def test_the_transformer_predicts_the_velocity_of_comfyui_in_a_batch_of_prompts_of_two_lengths(outputs: tuple[Arrays, Arrays]) -> None:
    comfy, ours = outputs
    assert list(comfy["recognised"]) == [2, 96, 64]
    for number in range(2):
        assert difference(ours["velocity"][number], comfy[f"velocity {number}"][0]) < 1e-5


def test_the_vae_encodes_and_decodes_as_in_comfyui(outputs: tuple[Arrays, Arrays]) -> None:
    comfy, ours = outputs
    assert difference(ours["encoded"], comfy["encoded"]) < 1e-5
    assert difference(ours["decoded"], comfy["decoded"]) < 1e-5


def test_validation_images_are_sampled_with_the_shift_of_comfyui(outputs: tuple[Arrays, Arrays]) -> None:
    comfy, _ = outputs
    assert FAMILY.flow is not None
    assert (FAMILY.flow.sampling_shift, FAMILY.flow.timestep_multiplier) == tuple(comfy["shift"])
