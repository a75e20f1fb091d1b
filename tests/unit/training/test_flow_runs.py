"""Runs of SDXL as a rectified flow: they learn, resume to the same bits, state what they are, and ComfyUI paints the same images."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.tools.comfyui import ComfyUI
from tests.unit.training_helpers import Trained, configuration, make_dataset, thrown_back, train_here
from trainer.cli import main
from trainer.commands.sampling_settings import choose_sampling_settings
from trainer.core.errors import UserError
from trainer.families import Prediction, family_named, open_checkpoint
from trainer.lorafile import read_lora
from trainer.runs import events
from trainer.training.monitoring.latent_sampling import decode_to_image, sample_latents

pytestmark = pytest.mark.seconds

STEPS = 12
PROMPT, NEGATIVE = "myStyle anime_face", "blurry"
PROMPT_WITH_FLAGS = f"{PROMPT} --n {NEGATIVE} --w 64 --h 64 --s 6 --l 4 --d 7"  # the second of SAMPLES
FAMILY = family_named("sdxl")
PROGRAM = Path(__file__).parent / "programs" / "sample_flow_in_comfyui.py"
ROOT = Path(__file__).resolve().parents[3]
SAMPLES = [
    {"shift": shift, "steps": steps, "guidance": guidance, "seed": 7, "width": 64, "height": 64}
    for shift, steps, guidance in ((1.0, 8, 1.0), (2.5, 6, 4.0), (3.0, 7, 4.0))
]


@pytest.fixture(scope="module")
def flow_run(shallow_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run with states at steps 6 and 12, two held-out images, and a validation image of the last weights."""
    changes = {
        "objective.prediction": "flow",
        "objective.timestep_sampling": "logit-normal",
        "objective.logit_std": 1.3,
        "objective.timestep_shift": 2.5,
        "network.rank": 16,
        "network.alpha": 16.0,
        "optimizer.lr": 1e-2,
        "training.epochs": STEPS,
        "training.max_steps": STEPS,
        "training.batch_size": 2,
        "training.gradient_accumulation": 2,
        "training.checkpoint_every": 6,
        "training.keep_checkpoints": 0,
        "validation.share": 0.34,
        "validation.every_epochs": STEPS,
        "sample.prompts": [PROMPT_WITH_FLAGS],
        "sample.every_epochs": STEPS,
        "sample.shift": 2.5,
    }
    folder = tmp_path_factory.mktemp("flow")
    trained = train_here(configuration(shallow_sdxl, make_dataset(folder, 6), folder / "runs", changes))
    assert trained.status == 0
    return trained


def test_validation_loss_falls(flow_run: Trained) -> None:
    measured = [event for event in flow_run.told if isinstance(event, events.Validation)]
    assert [event.step for event in measured] == [0, STEPS]
    assert list(measured[0].by_timestep) == ["125", "375", "625", "875"]
    # a new LoRA changes nothing, so the first loss is the base model's
    assert measured[-1].loss < 0.8 * measured[0].loss


def test_plan_states_how_latents_are_scaled(flow_run: Trained) -> None:
    (plan,) = (event for event in flow_run.told if isinstance(event, events.Plan))
    assert plan.latents == "scaled by 0.13025, not shifted"


def test_a_resumed_run_ends_with_the_same_bits(flow_run: Trained, tmp_path: Path) -> None:
    again = train_here(thrown_back(flow_run, tmp_path / "cut", 6))
    assert [event.start_step for event in again.told if isinstance(event, events.Plan)] == [0, 6]
    assert again.run.lora.read_bytes() == flow_run.run.lora.read_bytes()


def test_lora_states_the_flow_and_how_its_noise_levels_were_drawn(flow_run: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    metadata = read_lora(flow_run.run.lora).metadata
    expected = {
        "modelspec.prediction_type": "flow",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "ss_timestep_sampling": "shift",
        "ss_sigmoid_scale": "1.3",
        "ss_discrete_flow_shift": "2.5",
        "ss_weighting_scheme": "none",
    }
    assert {key: metadata.get(key) for key in expected} == expected
    assert main(["info", str(flow_run.run.lora)]) == 0
    assert "prediction    flow" in capsys.readouterr().out


def test_command_sample_follows_the_prediction_of_the_lora(flow_run: Trained, shallow_sdxl: Path, shallow_checkpoint: Path) -> None:
    metadata = [(flow_run.run.lora, read_lora(flow_run.run.lora).metadata)]
    chosen = choose_sampling_settings(FAMILY, open_checkpoint(str(shallow_sdxl)), metadata)
    assert chosen.prediction == Prediction("flow") and any("flow, for which" in remark for remark in chosen.remarks)
    assert choose_sampling_settings(FAMILY, open_checkpoint(str(shallow_sdxl)), []).prediction == Prediction()
    with pytest.raises(UserError, match=r"is flow, but Stable Diffusion 1\.x is trained for epsilon or v-prediction"):
        choose_sampling_settings(family_named("sd1"), open_checkpoint(str(shallow_checkpoint)), [], prediction="flow")


def test_command_sample_paints_the_validation_image_of_the_run(flow_run: Trained, shallow_sdxl: Path, tmp_path: Path) -> None:
    arguments = ["--base", str(shallow_sdxl), "--lora", str(flow_run.run.lora), "--prompt", PROMPT_WITH_FLAGS, "--shift", "2.5"]
    assert main(["sample", *arguments, "--device", "cpu", "--out", str(tmp_path)]) == 0
    (sampled,) = tmp_path.glob("*.png")
    assert apart(sampled, validation_image(flow_run)) < 0.5
    assert apart(flow_run.run.samples / "epoch-000-00.png", validation_image(flow_run)) > 5  # the LoRA changes it


def validation_image(trained: Trained) -> Path:
    """The run's image of its last weights, before export rounded them to fp16."""
    (path,) = trained.run.samples.glob(f"epoch-{STEPS:03d}-*.png")
    return path


def apart(first: Path, second: Path) -> float:
    """The mean difference of two images, in levels of 256."""
    pixels = [np.asarray(Image.open(path), dtype=float) for path in (first, second)]
    return float(np.abs(pixels[0] - pixels[1]).mean())


def conditions(checkpoint: Path) -> list[dict[str, torch.Tensor]]:
    encoder = FAMILY.load_text_encoder(open_checkpoint(str(checkpoint)), torch.float32, torch.device("cpu"))
    return encoder.encode([PROMPT, NEGATIVE])


def in_comfyui(comfyui: ComfyUI, folder: Path, checkpoint: Path, lora: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The latents of ``SAMPLES``, and Load LoRA's warnings (see the program)."""
    (folder / "base").mkdir()
    rows = zip(("", "negative "), conditions(checkpoint), strict=True)
    save_file({f"{which}{name}": row[name][None].contiguous() for which, row in rows for name in row}, folder / "conditions.safetensors")
    job = {
        "checkpoint": str(checkpoint),
        "lora": str(lora),
        "conditions": str(folder / "conditions.safetensors"),
        "result": str(folder / "result.safetensors"),
        "samples": SAMPLES,
    }
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    command = [str(comfyui.python), str(PROGRAM), str(comfyui.path), str(ROOT), str(folder / "base"), str(folder / "job.json")]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=600, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-4000:]
    return load_file(folder / "result.safetensors"), json.loads(lines[-1].removeprefix("RESULT "))


@pytest.mark.comfyui
def test_comfyui_paints_the_same_images(flow_run: Trained, shallow_sdxl: Path, tmp_path: Path, comfyui: ComfyUI) -> None:
    theirs, warnings = in_comfyui(comfyui, tmp_path, shallow_sdxl, flow_run.run.lora)
    checkpoint = open_checkpoint(str(shallow_sdxl))
    pipeline: Any = FAMILY.pipeline(checkpoint, dtype=torch.float32)
    pipeline.load_lora_weights(str(flow_run.run.lora.parent), weight_name=flow_run.run.lora.name)
    condition, negative = conditions(shallow_sdxl)
    for number, sample in enumerate(SAMPLES):
        scheduler = FAMILY.sampling_scheduler(Prediction("flow"), shift=float(sample["shift"]))
        scheduler.set_timesteps(int(sample["steps"]))
        torch.testing.assert_close(scheduler.sigmas, theirs[f"levels {number}"], rtol=0, atol=1e-6)
        options: dict[str, Any] = {name: sample[name] for name in ("shift", "steps", "guidance", "width", "height")}
        generator = torch.Generator().manual_seed(int(sample["seed"]))
        where: dict[str, Any] = {
            "generator": generator,
            "device": torch.device("cpu"),
            "dtype": torch.float32,
            "prediction": Prediction("flow"),
        }
        ours = sample_latents(pipeline.unet, FAMILY, condition, negative, **options, **where)
        assert ours is not None
        torch.testing.assert_close(ours / FAMILY.latents.scaling_factor, theirs[str(number)], rtol=1e-3, atol=1e-3)
    painted = decode_to_image(FAMILY, FAMILY.load_vae(checkpoint, torch.float32), theirs["1"] * FAMILY.latents.scaling_factor)
    painted.save(tmp_path / "painted.png")
    assert apart(tmp_path / "painted.png", validation_image(flow_run)) < 0.5
    assert "Put ModelSamplingSD3 before this node" in warnings[0] and "trained for a diffusion (epsilon)" in warnings[2]
    assert warnings[1] == warnings[3] == warnings[5] == ""
    assert warnings[4] == warnings[0]
