"""LoRAs for Anima are trained further, from a file in any program's names or as a longer run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.training_helpers import Trained, configuration, make_dataset, train_here
from trainer.config.run_config import RunConfig
from trainer.launch.outlook import continue_earlier, extended_config, outlook
from trainer.launch.prepared_run import prepare_run, write_run_folder
from trainer.lorafile import convert, read_lora, write_lora
from trainer.runs import events

pytestmark = pytest.mark.seconds

FIRST_KEYS = {"kohya": "lora_unet_blocks_0_", "comfyui": "diffusion_model.blocks.0.", "diffusers": "transformer.transformer_blocks.0."}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of two images."""
    return make_dataset(tmp_path_factory.mktemp("data"), 2)


@pytest.fixture(scope="module")
def make(tiny_anima: Path, dataset: Path) -> Any:
    """Configurations of runs in a folder, with changes; two steps an epoch."""

    def configured(runs: Path, changes: dict[str, object]) -> RunConfig:
        return configuration(tiny_anima, dataset, runs, {"training.gradient_accumulation": 1, "optimizer.lr": 1e-2, **changes})

    return configured


@pytest.fixture(scope="module")
def first(make: Any, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of one epoch at half the scale of the others here."""
    trained = train_here(make(tmp_path_factory.mktemp("first"), {"network.alpha": 1.0}))
    assert trained.status == 0
    return trained


@pytest.mark.parametrize("names", FIRST_KEYS)
def test_training_starts_from_a_lora_in_the_names_of_each_program(make: Any, first: Trained, tmp_path: Path, names: str) -> None:
    source = read_lora(first.run.lora)
    path = tmp_path / f"{names}.safetensors"
    write_lora(path, convert(source, names))
    assert next(iter(sorted(load_file(path)))).startswith(FIRST_KEYS[names])
    start = {"base.lora": str(path), "training.max_steps": 1, "optimizer.lr": 1e-9}
    further = train_here(make(tmp_path / "runs", start))
    assert further.status == 0
    ours, expected = ({module.name: module for module in read_lora(lora)} for lora in (further.run.lora, first.run.lora))
    assert ours.keys() == expected.keys() and len(ours) == 20
    for name, module in expected.items():
        effects = [
            each.scale * each.tensors["lora_up.weight"].float() @ each.tensors["lora_down.weight"].float() for each in (ours[name], module)
        ]
        assert effects[1].abs().max() > 0
        torch.testing.assert_close(*effects, rtol=2e-3, atol=1e-7)  # both are saved in fp16


def test_a_lora_with_more_layers_than_are_trained_is_refused(make: Any, first: Trained, tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    write_lora(path, convert(read_lora(first.run.lora), "comfyui"))
    refused = train_here(make(tmp_path / "runs", {"base.lora": str(path), "network.targets": "attention"}))
    (error,) = (event for event in refused.told if isinstance(event, events.Error))
    assert "has 4 layers that are not trained here, for example transformer_blocks.0.ff" in error.message


def test_an_extended_run_ends_with_the_bits_of_a_run_of_that_length(make: Any, tmp_path: Path) -> None:
    short = make(tmp_path / "runs", {"training.epochs": 1})
    train_here(short)
    longer = extended_config(prepare_run(short), 1)
    assert longer.training.epochs == 2
    run = prepare_run(longer)
    assert outlook(run).kind == "continues"
    write_run_folder(run)
    continue_earlier(run)
    continued = train_here(longer)
    assert [event.start_step for event in continued.told if isinstance(event, events.Plan)] == [0, 2]
    whole = train_here(make(tmp_path / "whole", {"training.epochs": 2}))
    assert continued.run.lora.read_bytes() == whole.run.lora.read_bytes()
