"""Anima's files in fp16 and fp8 train as fp32 files with the values that they hold, and nearly as the file that they were rounded from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from random_checkpoints.anima import DENOISER, TEXT_ENCODER, VAE
from tests.unit.training_helpers import Trained, configuration, make_dataset, train_here

pytestmark = pytest.mark.seconds

Tensors = dict[str, torch.Tensor]
LARGEST_E4M3 = 448.0
CHANGES = {
    "training.max_steps": 1,
    "training.batch_size": 2,
    "training.gradient_accumulation": 1,
    "optimizer.lr": 1e-2,
}


def halved(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Every tensor in fp16, and the values that it then has."""
    stored = {name: tensor.half() for name, tensor in tensors.items()}
    return stored, {name: tensor.float() for name, tensor in stored.items()}


def in_fp8(scale_name: str) -> Callable[[Tensors], tuple[Tensors, Tensors]]:
    """The linear layers in fp8 (e4m3), each with its scale under this name, or without one, and the values that they then have."""

    def convert(tensors: Tensors) -> tuple[Tensors, Tensors]:
        stored, values = dict(tensors), {name: tensor.float() for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            if not name.endswith(("_proj.weight", "layer1.weight", "layer2.weight")):
                continue
            scale = tensor.float().abs().max() / LARGEST_E4M3 if scale_name else torch.tensor(1.0)
            stored[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
            values[name] = stored[name].float() * scale
            if scale_name:
                stored[f"{name.removesuffix('weight')}{scale_name}"] = scale
        return stored, values

    return convert


# What a file is rounded to, and how far the loss may be from that of the file that it was rounded from: the largest relative error of a
# weight is half a step of the mantissa, which has 11 bits in fp16 and 4 in fp8, and errors of many weights cancel.
FORMS = {
    "fp16": (halved, 2.0**-11),
    "fp8": (in_fp8(""), 2.0**-4),
    "fp8 with scales": (in_fp8("scale_weight"), 2.0**-4),
    "fp8 with ComfyUI's scales": (in_fp8("weight_scale"), 2.0**-4),
}


def train_on(folder: Path, transformer: Tensors, text_encoder: Tensors, vae: Path, dataset: Path) -> Trained:
    """A step on a model with these tensors."""
    for name, tensors in ((DENOISER, transformer), (TEXT_ENCODER, text_encoder)):
        (folder / name).parent.mkdir(parents=True)
        save_file(tensors, folder / name)
    (folder / VAE).parent.mkdir(parents=True)
    (folder / VAE).hardlink_to(vae)
    trained = train_here(configuration(folder / DENOISER, dataset, folder / "runs", CHANGES))
    assert trained.status == 0
    return trained


@pytest.fixture(scope="module")
def models(tiny_anima: Path) -> Path:
    """The folder of the tiny model's files."""
    return tiny_anima.parents[1]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of two images."""
    return make_dataset(tmp_path_factory.mktemp("data"), 2)


@pytest.fixture(scope="module")
def exact(models: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A step on the published bf16 values."""
    transformer, text_encoder = (load_file(models / name) for name in (DENOISER, TEXT_ENCODER))
    return train_on(tmp_path_factory.mktemp("exact"), transformer, text_encoder, models / VAE, dataset)


@pytest.mark.parametrize("form", FORMS)
def test_a_rounded_file_trains_as_the_values_that_it_holds(models: Path, dataset: Path, exact: Trained, tmp_path: Path, form: str) -> None:
    convert, bound = FORMS[form]
    transformer, text_encoder = (convert(load_file(models / name)) for name in (DENOISER, TEXT_ENCODER))
    rounded = train_on(tmp_path / "rounded", transformer[0], text_encoder[0], models / VAE, dataset)
    same = train_on(tmp_path / "same", transformer[1], text_encoder[1], models / VAE, dataset)
    ours, expected = load_file(rounded.run.lora), load_file(same.run.lora)
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    assert rounded.steps[0].loss == same.steps[0].loss
    error = abs(rounded.steps[0].loss / exact.steps[0].loss - 1)
    assert error < bound
    # fp16 holds what bf16 does, except the smallest values, which move the loss by its last bit at most
    assert (error > 1e-6) == ("fp8" in form)
