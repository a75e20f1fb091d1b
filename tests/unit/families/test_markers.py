"""Checkpoints with unsupported objectives or of special kinds are refused by name, and doubtful ones cause a warning."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.families.helpers import copy_folder, save_as_folder, with_tensors
from tests.unit.training_helpers import configuration, make_dataset, train_here
from trainer.cli import main
from trainer.commands.image_generator import ImageGenerator
from trainer.config.sections.objective import ObjectiveSection
from trainer.core.errors import UserError
from trainer.families import Prediction, cautions, family_named, family_of, open_checkpoint
from trainer.launch.prepared_run import prepare_run
from trainer.objective.choose import choose_prediction
from trainer.runs.events import Warning_


@pytest.fixture(scope="module")
def folder(shallow_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shallow SD 1.x checkpoint as a diffusers folder."""
    return save_as_folder(shallow_checkpoint, tmp_path_factory.mktemp("diffusers") / "model")


@pytest.fixture
def edited(folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function that copies the folder and changes values of one configuration; weights are hard links."""

    def make(file: str, **values: Any) -> Path:
        copy = copy_folder(folder, tmp_path / "model")
        config = {**json.loads((folder / file).read_text(encoding="utf-8")), **values}
        (copy / file).unlink()
        (copy / file).write_text(json.dumps(config), encoding="utf-8")
        return copy

    return make


def refusal(path: Path, tmp_path: Path, **changes: object) -> str:
    """The message with which a run on ``path`` is refused."""
    with pytest.raises(UserError) as caught:
        prepare_run(configuration(path, make_dataset(tmp_path / "data", 1), tmp_path / "runs", changes))
    return str(caught.value)


EDM = {
    "Playground 2.5": {"edm_mean": torch.zeros(4), "edm_std": torch.ones(4)},
    "CosXL": {"edm_vpred.sigma_max": torch.tensor(120.0), "edm_vpred.sigma_min": torch.tensor(0.002)},
}


@pytest.mark.parametrize("name", EDM)
def test_edm_checkpoint_is_refused_with_every_setting(shallow_sdxl: Path, tmp_path: Path, name: str) -> None:
    path = with_tensors(shallow_sdxl, tmp_path / "edm.safetensors", EDM[name])
    assert name in refusal(path, tmp_path)
    assert name in refusal(path, tmp_path, **{"objective.prediction": "epsilon"})
    with pytest.raises(UserError, match=name):
        ImageGenerator(open_checkpoint(str(path)), device="cpu")


def test_edm_markers_take_precedence_over_v_pred(shallow_sdxl: Path, tmp_path: Path) -> None:
    both = with_tensors(shallow_sdxl, tmp_path / "both.safetensors", {"v_pred": torch.zeros(1), **EDM["CosXL"]})
    assert family_named("sdxl").prediction(open_checkpoint(str(both))).kind == "edm_v_prediction"


@pytest.mark.parametrize("stated", ["flow_prediction", "rectified flow", "sample", "x0", "something-new"])
def test_unknown_prediction_is_refused_unless_overridden(shallow_checkpoint: Path, tmp_path: Path, stated: str) -> None:
    path = with_tensors(shallow_checkpoint, tmp_path / "flow.safetensors", {}, {"modelspec.prediction_type": stated})
    assert "objective.prediction" in refusal(path, tmp_path)
    checkpoint = open_checkpoint(str(path))
    chosen = choose_prediction(family_of(checkpoint), checkpoint, ObjectiveSection(prediction="v-prediction"))
    assert chosen == Prediction("v_prediction")


def test_sdxl_file_that_states_a_flow_is_trained_as_one_only_on_request(shallow_sdxl: Path, tmp_path: Path) -> None:
    path = with_tensors(shallow_sdxl, tmp_path / "rf.safetensors", {}, {"modelspec.prediction_type": "flow"})
    assert "objective.prediction" in refusal(path, tmp_path)
    checkpoint = open_checkpoint(str(path))
    chosen = [choose_prediction(family_named("sdxl"), checkpoint, ObjectiveSection(prediction=kind)) for kind in ("flow", "epsilon")]
    assert chosen == [Prediction("flow"), Prediction("epsilon")]


def test_flow_is_refused_for_families_without_it(shallow_checkpoint: Path, tmp_path: Path) -> None:
    message = refusal(shallow_checkpoint, tmp_path, **{"objective.prediction": "flow"})
    assert "Stable Diffusion 1.x is trained for epsilon or v-prediction" in message


@pytest.mark.parametrize(("stated", "kind"), [("v", "v_prediction"), ("V-Prediction", "v_prediction"), ("eps", "epsilon"), ("", "epsilon")])
def test_spellings_of_supported_predictions_are_understood(shallow_checkpoint: Path, tmp_path: Path, stated: str, kind: str) -> None:
    path = with_tensors(shallow_checkpoint, tmp_path / "v.safetensors", {}, {"modelspec.prediction_type": stated})
    assert family_named("sd1").prediction(open_checkpoint(str(path))).kind == kind


@pytest.mark.parametrize(
    ("file", "values", "word"),
    [
        ("scheduler/scheduler_config.json", {"prediction_type": "flow_prediction"}, "rectified flow"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, r"\(sample\)"),
        ("scheduler/scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "rectified flow"),
        ("scheduler/scheduler_config.json", {"_class_name": "EDMDPMSolverMultistepScheduler"}, "Playground 2.5"),
        ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}, "CosXL"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule = 'squaredcos_cap_v2'"),
        ("scheduler/scheduler_config.json", {"beta_end": 0.02}, "beta_end = 0.02"),
        ("vae/config.json", {"latents_mean": [0.1, 0.2, 0.3, 0.4]}, "latents_mean"),
        ("unet/config.json", {"in_channels": 9}, "inpainting"),
        ("unet/config.json", {"in_channels": 8}, "pix2pix"),
        ("unet/config.json", {"class_embed_type": "projection"}, "class_embed_type"),
    ],
)
def test_unsupported_folder_configuration_is_refused_by_name(
    edited: Callable[..., Path], tmp_path: Path, file: str, values: dict[str, Any], word: str
) -> None:
    assert re.search(word, refusal(edited(file, **values), tmp_path))


def test_v_prediction_folder_is_supported(edited: Callable[..., Path]) -> None:
    path = edited("scheduler/scheduler_config.json", prediction_type="v_prediction", rescale_betas_zero_snr=True)
    checkpoint = open_checkpoint(str(path))
    assert family_of(checkpoint).prediction(checkpoint) == Prediction("v_prediction", True)


@pytest.mark.parametrize(("channels", "word"), [(9, "inpainting"), (8, "pix2pix"), (5, "depth"), (7, "upscaler"), (13, "13 channels")])
def test_unet_with_more_channels_is_refused_by_kind(shallow_checkpoint: Path, tmp_path: Path, channels: int, word: str) -> None:
    stem = "model.diffusion_model.input_blocks.0.0.weight"
    width = load_file(str(shallow_checkpoint))[stem].shape[0]
    path = with_tensors(shallow_checkpoint, tmp_path / "more.safetensors", {stem: torch.zeros(width, channels, 3, 3)})
    assert word in refusal(path, tmp_path)


@pytest.mark.parametrize(
    ("key", "word"),
    [
        ("embedder.model.visual.conv1.weight", "unCLIP"),
        ("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.fuser.linear.weight", "GLIGEN"),
        ("model.diffusion_model.input_blocks.1.1.time_stack.0.attn1.to_q.weight", "video"),
    ],
)
def test_single_file_with_additional_layers_is_refused(shallow_checkpoint: Path, tmp_path: Path, key: str, word: str) -> None:
    assert word in refusal(with_tensors(shallow_checkpoint, tmp_path / "more.safetensors", {key: torch.zeros(2, 2)}), tmp_path)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("sdxl_lightning_4step", "Lightning"),
        ("DreamShaper-LCM", "LCM"),
        ("sd_xl_turbo_1.0", "Turbo"),
        ("noob-vpred-1.0", "v-prediction"),
        ("Chenkin_Rectified-Flow", "rectified flow"),
        ("hyperion", ""),
        ("flowers_turbot", ""),
    ],
)
def test_cautions_about_model_names(shallow_checkpoint: Path, tmp_path: Path, name: str, word: str) -> None:
    path = tmp_path / f"{name}.safetensors"
    path.hardlink_to(shallow_checkpoint)
    checkpoint = open_checkpoint(str(path))
    found = " ".join(cautions(checkpoint, family_of(checkpoint)))
    assert word.lower() in found.lower() if word else not found


def test_caution_about_the_scale_of_latents_of_an_eq_vae(shallow_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "noob-rf-EQ-VAE.safetensors"
    path.hardlink_to(shallow_checkpoint)
    (caution,) = cautions(open_checkpoint(str(path)), family_named("sdxl"), "flow")
    assert "0.13025, no shift" in caution


@pytest.mark.parametrize("changes", [{"shift_factor": -0.4743}, {"latents_mean": [0.1, 0.2, 0.3, 0.4]}], ids=["shift", "by channel"])
def test_folder_with_shifted_latents_is_refused(edited: Callable[..., Path], tmp_path: Path, changes: dict[str, Any]) -> None:
    assert "its latents are shifted" in refusal(edited("vae/config.json", **changes), tmp_path)


def test_caution_about_lcm_scheduler(edited: Callable[..., Path]) -> None:
    path = edited("scheduler/scheduler_config.json", _class_name="LCMScheduler")
    checkpoint = open_checkpoint(str(path))
    assert ["LCMScheduler" in caution for caution in cautions(checkpoint, family_of(checkpoint))] == [True]


@pytest.mark.seconds
def test_run_and_dry_run_report_cautions(shallow_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, data = tmp_path / "my-turbo.safetensors", make_dataset(tmp_path / "data", 1)
    path.hardlink_to(shallow_checkpoint)
    settings = configuration(path, data, tmp_path / "runs", {"training.max_steps": 1})
    warnings = [event.message for event in train_here(settings).told if isinstance(event, Warning_)]
    assert any("distilled" in message for message in warnings)
    (tmp_path / "run.json").write_text(settings.to_json(), encoding="utf-8")
    assert main(["train", str(tmp_path / "run.json"), "--dry-run"]) == 0
    assert "distilled" in capsys.readouterr().err
