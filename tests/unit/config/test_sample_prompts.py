"""Validation prompts with kohya's flags: read as kohya's trainer reads them, and sampled with what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.unit.training_helpers import configuration, make_dataset, train_here
from trainer.config.run_config import parse
from trainer.config.sample_prompts import SamplePrompt, read_prompt
from trainer.core.errors import UserError
from trainer.families import family_named, open_checkpoint
from trainer.runs.events import Sample, Warning_


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a cat", SamplePrompt("a cat")),
        (
            "masterpiece, 1girl --n low quality, worst --w 768 --h 512 --d 1 --l 7.5 --s 28",  # of kohya's documentation
            SamplePrompt("masterpiece, 1girl", "low quality, worst", 768, 512, 28, 7.5, 1),
        ),
        ("a cat --W 64 --S 3", SamplePrompt("a cat", width=64, steps=3)),
        ("a -- b, c--w 5", SamplePrompt("a -- b, c--w 5")),
        ("a cat --n dark -- red", SamplePrompt("a cat", "dark -- red")),
        ("a cat --n ", SamplePrompt("a cat", "")),
    ],
)
def test_flags_are_read(line: str, expected: SamplePrompt) -> None:
    assert read_prompt(line) == expected


@pytest.mark.parametrize(
    ("line", "field", "value", "word"),
    [
        ("a --w 500", "width", 496, "500"),
        ("a --h 8", "height", 64, "8"),
        ("a --s 0", "steps", 1, "0"),
        ("a --ss euler_a --s 4", "steps", 4, "sampler"),
        ("a --g 3.5", "guidance", None, "--l"),
        ("a --q 3", "text", "a --q 3", "--q"),
    ],
)
def test_changed_and_ineffective_flags_are_noted(line: str, field: str, value: object, word: str) -> None:
    read = read_prompt(line)
    assert getattr(read, field) == value
    assert len(read.notes) == 1 and word in read.notes[0]


@pytest.mark.parametrize("line", ["a --w wide", "a --s", "a --l nan", "a --d -1", "a --d 1e3", "a --d 99999999999999999999999"])
def test_flags_without_a_number_are_rejected(line: str) -> None:
    with pytest.raises(UserError, match=r"sample\.prompts.*expected a"):
        parse({"base": {"checkpoint": "x"}, "dataset": {"path": "y"}, "sample": {"prompts": [line]}})


@pytest.mark.seconds
def test_validation_image_equals_the_pipelines_for_the_same_flags(shallow_checkpoint: Path, tmp_path: Path) -> None:
    prompts = ["myStyle girl --n blurry --w 96 --h 80 --d 7 --l 4 --s 3", "a cat --ss ddim"]
    changes = {"sample.prompts": prompts, "sample.every_epochs": 1, "training.max_steps": 1}
    trained = train_here(configuration(shallow_checkpoint, make_dataset(tmp_path, 2), tmp_path / "runs", changes))
    assert trained.status == 0, trained.told[-1]
    samples = [event for event in trained.told if isinstance(event, Sample) and event.epoch == 0]
    assert [event.prompt for event in samples] == ["myStyle girl", "a cat"]
    assert sum("--ss has no effect" in event.message for event in trained.told if isinstance(event, Warning_)) == 1
    pipeline: Any = family_named("sd1").pipeline(open_checkpoint(str(shallow_checkpoint)), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        "myStyle girl", negative_prompt="blurry", width=96, height=80, num_inference_steps=3, guidance_scale=4.0,
        generator=torch.Generator().manual_seed(7),
    ).images[0]  # fmt: skip
    with Image.open(samples[0].path) as image, Image.open(samples[1].path) as other:
        assert other.size == (64, 64)
        assert image.size == (96, 80)
        assert np.abs(np.asarray(image, dtype=int) - np.asarray(expected, dtype=int)).max() <= 2
