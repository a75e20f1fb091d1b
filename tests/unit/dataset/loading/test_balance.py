"""Regularisation images in balance with the others, by kohya's rule."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.training_helpers import configuration, make_pictures
from trainer.cli import main
from trainer.config.run_config import RunConfig
from trainer.dataset import Dataset, Item, PrepareSettings, prepare_dataset
from trainer.dataset.loading.balance import balanced
from trainer.dataset.loading.open import open_training
from trainer.launch.prepared_run import prepare_run


def made(training: list[int], regularisation: list[int]) -> Dataset:
    """A dataset of images with these repeats."""
    both = [(repeats, False) for repeats in training] + [(repeats, True) for repeats in regularisation]
    items = [
        Item(f"{index}.png", f"{index}", "", 64, 64, (64, 64), (0, 0), repeats=repeats, is_regularisation=regular)
        for index, (repeats, regular) in enumerate(both)
    ]
    return Dataset(Path("x"), "x", "h", "", "", 64, items)


def images_per_epoch(dataset: Dataset, *, regularisation: bool) -> int:
    return sum(item.repeats for item in dataset.items if item.is_regularisation == regularisation)


def step_by_step(training: list[int], regularisation: list[int]) -> dict[int, int]:
    """kohya's loop, one image after the other: repeats of each regularisation image that is used."""
    wanted, count = sum(training), 0
    used: dict[int, int] = {}
    for turn, index in enumerate(itertools.cycle(range(len(regularisation)))):
        if count >= wanted:
            return used
        more = regularisation[index] if turn < len(regularisation) else 1
        used[index] = used.get(index, 0) + more
        count += more
    raise AssertionError


@pytest.mark.parametrize(
    ("training", "regularisation", "expected"),
    [
        ([10] * 3, [1] * 60, (30, 30)),  # what kohya's trainer shows
        ([1] * 400, [1] * 50, (400, 400)),
        ([1] * 5, [3] * 4, (5, 6)),  # an image is not trained on for a part of its repeats
        ([1] * 4, [], (4, 0)),
    ],
)
def test_epoch_has_the_same_counts_as_in_sd_scripts(training: list[int], regularisation: list[int], expected: tuple[int, int]) -> None:
    result = balanced(made(training, regularisation))
    assert (images_per_epoch(result, regularisation=False), images_per_epoch(result, regularisation=True)) == expected


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.lists(st.integers(1, 12), min_size=1, max_size=12))
def test_repeats_equal_those_of_the_loop_in_sd_scripts(training: list[int], regularisation: list[int]) -> None:
    result = balanced(made(training, regularisation))
    found = {int(item.sha256) - len(training): item.repeats for item in result.items if item.is_regularisation}
    assert found == step_by_step(training, regularisation)
    assert [item.repeats for item in result.items if not item.is_regularisation] == training


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images, ten times each, and 40 regularisation images."""
    root = tmp_path_factory.mktemp("balance")
    settings = PrepareSettings(trigger="me", resolution=64, repeats=10)
    return prepare_dataset(
        make_pictures(root / "in", 3), root / "out", settings, regularisation=make_pictures(root / "reg", 40, seed=9)
    ).dataset.path


def run(prepared: Path, checkpoint: Path, tmp_path: Path, **changes: object) -> RunConfig:
    return configuration(checkpoint, prepared, tmp_path / "runs", changes)


def test_run_reports_share_and_unused_images(
    prepared: Path, shallow_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run(prepared, shallow_checkpoint, tmp_path)
    opened = open_training(config)
    assert images_per_epoch(opened.training, regularisation=True) == 30
    start = "30 of the 60 images in an epoch are regularisation images (50%); 10 more are not needed for balance"
    assert opened.regularisation.startswith(start)
    (tmp_path / "run.json").write_text(config.to_json(), encoding="utf-8")
    assert main(["train", str(tmp_path / "run.json"), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (sum(plan["buckets"].values()), plan["regularisation"]) == (60, opened.regularisation)


def test_balance_can_be_switched_off_and_changes_the_run(prepared: Path, shallow_checkpoint: Path, tmp_path: Path) -> None:
    on = run(prepared, shallow_checkpoint, tmp_path)
    off = run(prepared, shallow_checkpoint, tmp_path, **{"dataset.balance_regularisation": False})
    opened = open_training(off)
    assert (images_per_epoch(opened.training, regularisation=False), images_per_epoch(opened.training, regularisation=True)) == (30, 40)
    assert opened.regularisation == "40 of the 70 images in an epoch are regularisation images (57%)"
    assert prepare_run(on).folder.path != prepare_run(off).folder.path


def test_validation_images_do_not_count_for_balance(prepared: Path, shallow_checkpoint: Path, tmp_path: Path) -> None:
    opened = open_training(run(prepared, shallow_checkpoint, tmp_path, **{"validation.share": 0.34}))
    assert (len(opened.held_out.items), images_per_epoch(opened.training, regularisation=True)) == (1, 20)
