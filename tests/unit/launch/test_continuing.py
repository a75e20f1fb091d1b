"""Runs that continue an earlier one which differs only in what comes later. The files are those of runs that had the settings all along."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.unit.training_helpers import PROMPTS, Trained, configuration, make_dataset, make_pictures, train_here
from trainer.config.run_config import RunConfig
from trainer.core.errors import UserError
from trainer.core.messages import Setting, mentions
from trainer.dataset import PrepareSettings, prepare_dataset
from trainer.launch.outlook import continue_earlier, extended_config, outlook
from trainer.launch.prepared_run import prepare_run, write_run_folder
from trainer.runs import events
from trainer.runs.event_log import loss_history, read_events_of, read_samples
from trainer.runs.lineage import forget
from trainer.training.run import DONE

pytestmark = pytest.mark.slow
PER_EPOCH = 5  # of the two datasets
SETTINGS: dict[str, object] = {
    "training.gradient_accumulation": 1,
    "training.checkpoint_every": 3,
    "sample.every_epochs": 1,
    "sample.prompts": PROMPTS[:1],
    "sample.steps": 1,
    "optimizer.warmup_steps": 4,
}


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """A second dataset, whose captions are shuffled and dropped, as a setting."""
    root = tmp_path_factory.mktemp("hero")
    hints = {"flip": True, "shuffle_caption": True, "caption_dropout": 0.3, "tag_dropout": 0.2}
    settings = PrepareSettings(trigger="myHero", class_description="girl", resolution=64, training=hints)  # type: ignore[arg-type]
    source = make_pictures(root / "pictures", 2, seed=2)
    for index in range(2):
        (source / f"{index:02d}.txt").write_text("red hair, hat, smile, blue eyes, standing", encoding="utf-8")
    return {"dataset.more": [{"path": str(prepare_dataset(source, root / "datasets", settings).dataset.path)}]}


@pytest.fixture(scope="module")
def style(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of three images."""
    return make_dataset(tmp_path_factory.mktemp("style"), 3, seed=1)


@pytest.fixture(scope="module")
def make(shallow_checkpoint: Path, style: Path, more: dict[str, object]) -> Any:
    """Configurations of runs on both datasets in a folder, with changes."""

    def configured(runs: Path, changes: dict[str, object]) -> RunConfig:
        return configuration(shallow_checkpoint, style, runs, {**SETTINGS, **more, **changes})

    return configured


def continue_here(config: RunConfig) -> Trained:
    """Train in this process, continuing an earlier run as the launcher does."""
    run = prepare_run(config)
    write_run_folder(run)
    continue_earlier(run)
    return train_here(config)


def start_steps(trained: Trained) -> list[int]:
    """The steps at which the starts of a run began, those of the run that it continues included."""
    return [event.start_step for event in trained.told if isinstance(event, events.Plan)]


@pytest.fixture(scope="module")
def six(make: Any, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Six epochs from the start."""
    return train_here(make(tmp_path_factory.mktemp("six"), {"training.epochs": 6}))


@pytest.fixture(scope="module")
def four(make: Any, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Four epochs from the start."""
    return train_here(make(tmp_path_factory.mktemp("four"), {"training.epochs": 4}))


def copied(trained: Trained, make: Any, runs: Path, step: int, **changes: object) -> RunConfig:
    """``trained`` in the folder ``runs`` as if it had been stopped at ``step``, and the configuration of a run that changes it."""
    folder = shutil.copytree(trained.run.path, runs / trained.run.path.name)
    later = [path for path in (folder / "checkpoints").iterdir() if int(path.name.removeprefix("step-")) > step]
    for path in later:
        shutil.rmtree(path)
    (folder / "result.json").unlink()
    config: RunConfig = make(runs, {"training.epochs": 6, **changes})
    return config


def test_four_epochs_and_two_more_are_six_epochs_to_the_bit(make: Any, four: Trained, six: Trained) -> None:
    config = make(four.run.path.parent, {"training.epochs": 6})
    whole = outlook(prepare_run(config))
    assert (whole.kind, whole.step, whole.steps, whole.run) == ("continues", 4 * PER_EPOCH, 6 * PER_EPOCH, four.run.path.name)
    assert "same result" in whole.message
    continued = continue_here(config)
    assert continued.status == DONE
    assert start_steps(continued) == [0, 4 * PER_EPOCH]
    assert continued.run.lora.read_bytes() == six.run.lora.read_bytes()
    assert [step.loss for step in loss_history(continued.run.events)] == [step.loss for step in loss_history(six.run.events)]
    assert [(each.epoch, each.path.read_bytes()) for each in read_samples(continued.run.events)] == [
        (each.epoch, each.path.read_bytes()) for each in read_samples(six.run.events)
    ]
    assert four.run.finished() is not None
    assert outlook(prepare_run(config)).kind == "finished"


def test_a_run_stopped_after_seven_steps_continues_with_more_epochs(make: Any, four: Trained, six: Trained, tmp_path: Path) -> None:
    continued = continue_here(copied(four, make, tmp_path / "runs", 7))
    assert start_steps(continued) == [0, 6]
    assert continued.run.lora.read_bytes() == six.run.lora.read_bytes()


def test_steps_beyond_a_limit_within_an_epoch_are_those_without_it(make: Any, tmp_path: Path) -> None:
    until_eight = train_here(make(tmp_path / "eight", {"training.epochs": 3, "training.max_steps": 8}))
    train_here(make(tmp_path / "runs", {"training.epochs": 3, "training.max_steps": 7}))
    continued = continue_here(make(tmp_path / "runs", {"training.epochs": 3, "training.max_steps": 8}))
    assert start_steps(continued) == [0, 7]
    assert continued.run.lora.read_bytes() == until_eight.run.lora.read_bytes()
    epochs = continue_here(make(tmp_path / "runs", {"training.epochs": 2}))
    assert start_steps(epochs)[-1] == 8
    (second,) = [sample for sample in read_samples(epochs.run.events) if sample.epoch == 2]
    assert second.step == 10  # not the image of the limit, which was at the same epoch


def test_fewer_epochs_end_at_the_state_that_a_longer_run_had_there(make: Any, four: Trained, six: Trained, tmp_path: Path) -> None:
    config = copied(six, make, tmp_path / "runs", 24, **{"training.epochs": 4})
    continued = continue_here(config)
    assert start_steps(continued) == [0, 18]
    assert continued.run.lora.read_bytes() == four.run.lora.read_bytes()


def test_what_is_shown_and_saved_meanwhile_and_the_name_may_change(make: Any, four: Trained, tmp_path: Path) -> None:
    changes: dict[str, object] = {
        "name": "my style",
        "training.epochs": 4,
        "training.checkpoint_every": 4,
        "sample.prompts": PROMPTS[:2],
        "sample.steps": 2,
    }
    continued = continue_here(copied(four, make, tmp_path / "runs", 9, **changes))
    assert start_steps(continued) == [0, 9]
    ours, expected = continued.state(20)["lora"], four.state(20)["lora"]
    assert ours.keys() == expected.keys()
    for name, values in expected.items():
        assert ours[name].equal(values), name
    saved = {path.name for path in continued.run.checkpoints.glob("*/*.safetensors")}
    assert {"my style-000003.safetensors", "my style-000009.safetensors", "my style-000012.safetensors"} <= saved
    assert all(Path(event.lora).is_file() for event in read_events_of(continued.run.events, events.Checkpoint))


def test_a_longer_cosine_schedule_is_followed_from_the_next_step_on(make: Any, tmp_path: Path) -> None:
    cosine: dict[str, object] = {"optimizer.schedule": "cosine", "optimizer.warmup_steps": 0, "training.epochs": 2, "training.max_steps": 4}
    train_here(make(tmp_path / "runs", cosine))
    longer = make(tmp_path / "runs", {**cosine, "training.max_steps": 8})
    assert "differs from that of a new run" in outlook(prepare_run(longer)).message
    assert "cosine" in outlook(prepare_run(longer)).message
    continued = continue_here(longer)
    # half a cosine over 4, then over 8 steps
    expected = [1e-3, 8.535534e-4, 5e-4, 1.464466e-4, 5e-4, 3.086583e-4, 1.464466e-4, 3.806023e-5]
    assert [step.lr for step in loss_history(continued.run.events)] == pytest.approx(expected)
    other_images = outlook(prepare_run(make(tmp_path / "runs", {**cosine, "training.max_steps": 8, "sample.prompts": PROMPTS[1:2]})))
    assert (other_images.kind, other_images.step) == ("continues", 8)
    assert "its schedule stays the same" in other_images.message
    shorter = make(tmp_path / "runs", {**cosine, "training.max_steps": 6})
    assert outlook(prepare_run(shorter)).kind == "continues"
    assert outlook(prepare_run(shorter)).step == 4  # of the run with 4 steps: the longer one's schedule was another


def test_what_changes_the_result_is_a_new_run_and_is_named(make: Any, four: Trained) -> None:
    runs = four.run.path.parent
    for key, value in (("optimizer.lr", 2e-3), ("training.seed", 7), ("network.rank", 8), ("dataset.more", [])):
        changed = outlook(prepare_run(make(runs, {"training.epochs": 6, key: value})))
        assert (changed.kind, changed.step) == ("starts", 0)
        named = [mention.key for mention in mentions(changed.message) if isinstance(mention, Setting)]
        assert named == ([] if key == "dataset.more" else [key])


def test_a_damaged_state_is_passed_over_for_the_one_before(make: Any, four: Trained, six: Trained, tmp_path: Path) -> None:
    config = copied(four, make, tmp_path / "runs", 15)
    state = tmp_path / "runs" / four.run.path.name / "checkpoints" / "step-000015" / "state.pt"
    data = bytearray(state.read_bytes())
    data[-100] ^= 1
    state.write_bytes(data)
    continued = continue_here(config)
    assert start_steps(continued) == [0, 12]
    assert continued.run.lora.read_bytes() == six.run.lora.read_bytes()


def test_a_run_that_forgets_its_states_starts_at_its_first_step(make: Any, four: Trained, tmp_path: Path) -> None:
    config = copied(four, make, tmp_path / "runs", 15, **{"training.epochs": 4})
    run = prepare_run(config)
    assert (outlook(run).kind, outlook(run).step) == ("resumes", 15)
    forget(run.folder)
    again = train_here(config)
    assert start_steps(again) == [0]
    assert again.run.lora.read_bytes() == four.run.lora.read_bytes()


def test_extending_adds_epochs_to_the_longest_finished_run(make: Any, four: Trained, tmp_path: Path) -> None:
    asked = make(four.run.path.parent, {"training.epochs": 4})
    finished_epochs = max(json.loads(path.read_text())["training"]["epochs"] for path in four.run.path.parent.glob("*/config.json"))
    longer = extended_config(prepare_run(asked), 2)
    assert (longer.training.epochs, longer.training.max_steps) == (finished_epochs + 2, 0)
    limited = make(tmp_path / "runs", {"training.max_steps": 3})
    train_here(limited)
    longer = extended_config(prepare_run(limited), 1)
    assert (longer.training.epochs, longer.training.max_steps) == (2, 3 + PER_EPOCH)
    with pytest.raises(UserError, match="nothing to extend"):
        extended_config(prepare_run(make(tmp_path / "runs", {"optimizer.lr": 2e-3})), 1)
