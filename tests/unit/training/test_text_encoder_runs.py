"""Runs that train text encoders: resumed, started from a file, stopped after a share, and with long captions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from random_checkpoints.make_checkpoint import make_empty_checkpoint
from tests.tools.parameters import mark_long
from tests.unit.training.text_encoder_settings import CPU, QUICK, of_text
from tests.unit.training_helpers import Trained, configuration, make_dataset, thrown_back, train_here
from trainer.core import seeding
from trainer.core.errors import UserError
from trainer.dataset import open_dataset
from trainer.families import TextSettings, family_named, family_of, open_checkpoint
from trainer.lorafile import convert, read_lora, write_lora
from trainer.plan.planning import make_plan
from trainer.runs import events
from trainer.runs.run_plan import RunPlan
from trainer.training.caching.cache import Cache
from trainer.training.monitoring.latent_sampling import decode_to_image, sample_latents

pytestmark = pytest.mark.seconds
RESUMED: dict[str, dict[str, Any]] = {
    "dropout": {"network.dropout": 0.3},
    "a share": {"training.text_encoder_share": 0.5},
    "alone, schedule-free": {"network.unet": False, "optimizer.name": "schedule-free"},
    "decomposed": {"network.dora": True, "optimizer.lora_plus_ratio": 4.0},
}


@pytest.mark.parametrize("name", mark_long(RESUMED, "dropout", "a share"))
def test_a_resumed_run_ends_with_the_same_bits(
    shallow_checkpoint: Path, dataset_folder: Path, runs: Path, tmp_path: Path, name: str
) -> None:
    if name.endswith("schedule-free"):
        pytest.importorskip("schedulefree")
    changes = {**QUICK, **RESUMED[name], "training.max_steps": 4, "training.epochs": 2, "training.checkpoint_every": 1}
    whole = train_here(configuration(shallow_checkpoint, dataset_folder, runs, changes))
    again = train_here(thrown_back(whole, tmp_path / "cut", 1))
    assert again.status == 0
    assert [event.step for event in again.steps][-3:] == [2, 3, 4]
    assert again.run.lora.read_bytes() == whole.run.lora.read_bytes()


def test_after_its_share_the_text_encoder_stays_as_it_is(shallow_checkpoint: Path, dataset_folder: Path, runs: Path) -> None:
    changes = {**QUICK, "training.max_steps": 4, "training.epochs": 4, "training.checkpoint_every": 1, "training.text_encoder_share": 0.3}
    trained = train_here(configuration(shallow_checkpoint, dataset_folder, runs, changes))
    second, third, last = (trained.state(step)["lora"] for step in (1, 2, 4))  # 0.3 of 4 steps is two of them, rounded up
    assert any(not torch.equal(second[name], third[name]) for name in of_text(second))
    assert all(torch.equal(third[name], last[name]) for name in of_text(third))
    assert any(not torch.equal(third[name], last[name]) for name in third if not name.startswith("te"))


def test_checkpointing_changes_memory_and_not_the_result(shallow_checkpoint: Path, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, 2)
    plain, thrifty = (
        train_here(configuration(shallow_checkpoint, folder, tmp_path / "runs", {**QUICK, "training.gradient_checkpointing": value}))
        for value in (False, True)
    )
    assert thrifty.status == 0, thrifty.told[-1]
    assert [step.loss for step in plain.steps] == pytest.approx([step.loss for step in thrifty.steps], rel=1e-4)
    assert [step.grad_norm for step in plain.steps] == pytest.approx([step.grad_norm for step in thrifty.steps], rel=1e-3)


def test_validation_images_use_the_current_text_encoder(shallow_checkpoint: Path, dataset_folder: Path, runs: Path) -> None:
    changes: dict[str, Any] = {
        "network.unet": False, "optimizer.lr": 0.5, "sample.prompts": ["a cat"], "sample.every_epochs": 1, "training.epochs": 1,
        "sample.negative": "blurry",
    }  # fmt: skip
    trained = train_here(configuration(shallow_checkpoint, dataset_folder, runs, {**QUICK, **changes}))
    assert trained.status == 0, trained.told[-1]
    checkpoint = open_checkpoint(str(shallow_checkpoint))
    family = family_of(checkpoint)
    text: Any = family.load_text_encoder(checkpoint, torch.float32, CPU)
    pictures = [np.asarray(Image.open(trained.run.samples / f"epoch-00{epoch}-00.png"), dtype=int) for epoch in (0, 1)]
    for picture in pictures:
        condition, negative = text.encode(["a cat", "blurry"])
        latents = sample_latents(
            family.load_denoiser(checkpoint, torch.float32), family, condition, negative, width=64, height=64, steps=2, guidance=7.5,
            generator=seeding.generator(42, "sample", 0), device=CPU, dtype=torch.float32,
        )  # fmt: skip
        assert latents is not None
        expected = np.asarray(decode_to_image(family, family.load_vae(checkpoint, torch.float32), latents), dtype=int)
        assert np.abs(picture - expected).max() <= 2
        for module in read_lora(trained.run.lora):  # for the second picture, with what was learned
            inside = module.name if hasattr(text.model, "text_model") else module.name.removeprefix("text_model.")
            with torch.no_grad():
                text.model.get_submodule(inside).weight += module.delta()
    assert np.abs(pictures[0] - pictures[1]).max() > 20


def test_training_continues_from_a_file_whose_parts_are_trained_or_frozen(
    shallow_checkpoint: Path, dataset_folder: Path, runs: Path
) -> None:
    still = {**QUICK, "training.max_steps": 1, "optimizer.lr": 1e-9, "optimizer.weight_decay": 0.0, "network.alpha": 3.0}
    source = train_here(configuration(shallow_checkpoint, dataset_folder, runs, QUICK)).run.lora
    deltas = {(module.component, module.name): module.delta() for module in read_lora(source)}
    losses: list[float] = []
    for unet, text in ((True, True), (True, False), (False, True)):
        changes = {**still, "network.unet": unet, "network.text_encoder": text, "base.lora": str(source)}
        again = train_here(configuration(shallow_checkpoint, dataset_folder, runs, changes))
        assert again.status == 0, again.told[-1]
        found = {(module.component, module.name): module.delta() for module in read_lora(again.run.lora)}
        assert set(found) == set(deltas)
        for key, delta in found.items():
            frozen = not (unet if key[0] == "unet" else text)  # then it is to the bit as it was
            assert float((delta - deltas[key]).norm()) <= (0 if frozen else 3e-3 * float(deltas[key].norm()) + 1e-6)
        warnings = [event.message for event in again.told if isinstance(event, events.Warning_)]
        assert any("also changes the text encoder" in message for message in warnings) == (not text)
        assert any("also changes the UNet" in message for message in warnings) == (not unet)
        losses.append(again.steps[0].loss)
    # frozen layers act as trained ones do, which are computed in another way: merged into the weights
    assert losses == pytest.approx(losses[:1] * 3, rel=1e-4)


def test_a_frozen_part_of_a_file_without_alphas_is_written_with_them(
    shallow_checkpoint: Path, dataset_folder: Path, runs: Path, tmp_path: Path
) -> None:
    """diffusers' names have no alpha, and a kohya file needs one for each layer."""
    still = {**QUICK, "training.max_steps": 1, "optimizer.lr": 1e-9, "optimizer.weight_decay": 0.0}
    weights = read_lora(train_here(configuration(shallow_checkpoint, dataset_folder, runs, QUICK)).run.lora)
    source, converted = tmp_path / "diffusers.safetensors", convert(weights, "diffusers")
    write_lora(source, replace(converted, metadata={}))
    assert all(module.alpha is None for module in read_lora(source))
    changes = {**still, "network.text_encoder": False, "base.lora": str(source)}
    again = train_here(configuration(shallow_checkpoint, dataset_folder, runs, changes))
    assert again.status == 0, again.told[-1]
    found = {(module.component, module.name): module.delta() for module in read_lora(again.run.lora)}
    for module in weights:
        torch.testing.assert_close(found[module.component, module.name], module.delta(), rtol=1e-2, atol=1e-6)


def test_a_text_encoder_without_layers_in_the_file_starts_from_nothing(shallow_checkpoint: Path, dataset_folder: Path, runs: Path) -> None:
    still = {**QUICK, "training.max_steps": 1, "optimizer.lr": 1e-9}
    changes = {**QUICK, "network.text_encoder": False}
    source = train_here(configuration(shallow_checkpoint, dataset_folder, runs, changes)).run.lora
    fresh = train_here(configuration(shallow_checkpoint, dataset_folder, runs, {**still, "base.lora": str(source)}))
    assert fresh.status == 0, fresh.told[-1]
    assert {module.component for module in read_lora(fresh.run.lora)} == {"unet", "te1"}


def test_a_long_caption_is_read_whole_and_one_that_is_cut_is_named(shallow_checkpoint: Path, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, 2)
    for file in folder.rglob("*.txt"):
        file.write_text("myStyle " + ", ".join(f"tag number {number}" for number in range(20)), encoding="utf-8")
    runs: dict[int, Trained] = {}
    for limit in (75, 150):
        changes = {"training.max_steps": 1, "training.max_tokens": limit}
        runs[limit] = train_here(configuration(shallow_checkpoint, folder, tmp_path / "runs", changes))
    warnings = {limit: [event.message for event in run.told if isinstance(event, events.Warning_)] for limit, run in runs.items()}
    assert len(warnings[75]) == 1
    assert "of which the first 75 are read" in warnings[75][0] and "and 1 more" in warnings[75][0] and "max_tokens" in warnings[75][0]
    assert warnings[150] == []
    losses = {limit: run.steps[0].loss for limit, run in runs.items()}
    assert abs(losses[75] - losses[150]) > 1e-5


def test_a_cached_prompt_belongs_to_how_it_was_read(tmp_path: Path) -> None:
    settings = [TextSettings(), TextSettings(150), TextSettings(225), TextSettings(75, 2)]
    latents = family_named("sd1").latents
    assert len({Cache(tmp_path, "base", latents, text).prompt_path("a cat") for text in settings}) == len(settings)
    assert Cache(tmp_path, "base", latents).prompt_path("a cat") == Cache(tmp_path, "base", latents, TextSettings()).prompt_path("a cat")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network.unet": False}, "both off"),
        ({"network.unet": False, "network.text_encoder": True, "training.text_encoder_share": 0.5}, "text_encoder_share"),
        ({"optimizer.name": "prodigy", "optimizer.lr": 1.0, "optimizer.text_encoder_lr": 0.5}, "prodigy"),
        ({"training.max_tokens": 100}, "max_tokens"),
    ],
)
def test_settings_that_cannot_be_trained_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        configuration(tmp_path / "x.safetensors", tmp_path, tmp_path, changes)


def test_the_dry_run_counts_the_text_encoder_where_it_is_trained(tmp_path: Path) -> None:
    empty = make_empty_checkpoint(tmp_path / "empty.safetensors", "full")
    folder = make_dataset(tmp_path, 1)

    def plan(**changes: Any) -> RunPlan:
        run = configuration(empty, folder, tmp_path, {"network.rank": 16, **changes})
        return make_plan(run, open_dataset(folder), family_named("sd1"), open_checkpoint(str(empty)), CPU, "fp32")

    unet, whole, text = plan(), plan(**{"network.text_encoder": True}), plan(**{"network.text_encoder": True, "network.unet": False})
    assert (unet.modules, whole.modules, text.modules) == (192, 264, 72)
    # rank x (inputs + outputs) for four square layers and the two of the MLP, of 12 layers 768 wide
    assert text.trainable_parameters == whole.trainable_parameters - unet.trainable_parameters == 12 * 16 * (4 * 2 * 768 + 2 * 5 * 768)
    # CLIP ViT-L's 123.1 M parameters in fp32, and what a step on 77 tokens keeps
    assert 0.49 < whole.memory_gb - unet.memory_gb < 0.75
    assert plan(**{"network.text_encoder": True, "training.max_tokens": 225}).memory_gb > whole.memory_gb
