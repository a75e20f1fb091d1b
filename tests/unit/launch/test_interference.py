"""What can go wrong during a run: memory runs out, numbers overflow, the dataset changes, files are forged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tools.hostile import Evil
from tests.unit.training_helpers import UNDISTURBED, Trained, configuration, make_dataset, train_here
from trainer.adapters import adapter
from trainer.config.run_config import RunConfig
from trainer.core.errors import UserError
from trainer.core.files.reading import sha256_file
from trainer.core.files.sealed_json import read_sealed, write_sealed
from trainer.dataset import open_dataset
from trainer.families import open_checkpoint
from trainer.families.sd1 import FAMILY
from trainer.launch import launcher
from trainer.launch.prepared_run import prepare_run
from trainer.plan.planning import make_plan
from trainer.runs import events, states
from trainer.runs.event_log import read_events
from trainer.runs.run_folder import RunFolder
from trainer.training.caching.cache import _checksum
from trainer.training.recipe import TrainingRecipe
from trainer.training.run import train_run

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]
SETTINGS = UNDISTURBED
AtStep = Callable[[int, Callable[[], None]], None]


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> AtStep:
    """Call a function after a step of a run."""

    def arrange(step: int, act: Callable[[], None]) -> None:
        update_weights = TrainingRecipe.update_weights

        def updated(self: TrainingRecipe, *arguments: Any) -> None:
            update_weights(self, *arguments)
            if self.state.step == step:
                act()

        monkeypatch.setattr(TrainingRecipe, "update_weights", updated)

    return arrange


def error_of(trained: Trained) -> events.Error:
    """The error with which the run failed."""
    told = trained.told[-1]
    assert isinstance(told, events.Error), told
    return told


# memory


def memory_with(config: RunConfig, changes: dict[str, object]) -> float:
    """The estimate in GB for changed settings, taken from a plan."""
    data = config.model_dump()
    for key, value in changes.items():
        section, _, name = key.partition(".")
        data[section][name] = value
    changed = RunConfig.model_validate(data)
    dataset, checkpoint = open_dataset(Path(config.dataset.path)), open_checkpoint(config.base.checkpoint)
    return make_plan(changed, dataset, FAMILY, checkpoint, torch.device("cpu"), changed.training.precision).memory_gb


def helps_most(config: RunConfig) -> str:
    """The change after which the least memory is needed."""
    candidates: dict[str, dict[str, object]] = {
        'training.precision = "bf16"': {"training.precision": "bf16"},
        "training.gradient_checkpointing = true": {"training.gradient_checkpointing": True},
        "training.micro_batch_size = 1": {"training.micro_batch_size": 1},
        'training.base_precision = "int8"': {"training.base_precision": "int8"},
        'network.targets = "attention"': {"network.targets": "attention"},
    }
    return min(candidates, key=lambda name: memory_with(config, candidates[name]))


def test_a_gpu_that_runs_out_of_memory_names_the_setting_that_helps_most(
    shallow_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, object] = {**SETTINGS, "training.batch_size": 2}
    config = configuration(shallow_checkpoint, make_dataset(tmp_path, 4, resolution=256), tmp_path / "runs", changes)
    honest = launcher.command

    def command(run: Any) -> list[str]:
        entry, out_of_memory = ROOT / "trainer" / "entry.py", ROOT / "tests" / "tools" / "children" / "entry_out_of_memory.py"
        return [word.replace(str(entry), str(out_of_memory)) for word in honest(run)]

    monkeypatch.setattr(launcher, "command", command)
    with pytest.raises(UserError) as caught:
        launcher.train(prepare_run(config))
    assert caught.value.kind == "memory"
    assert "CUDA out of memory" in caught.value.message
    assert f"What helps most: {helps_most(config)} (about " in caught.value.hint


@pytest.mark.parametrize(
    "used",
    [{"training.gradient_checkpointing": True}, {"training.micro_batch_size": 1}],
    ids=["checkpointing", "one at a time"],
)
def test_settings_that_a_run_already_uses_are_not_suggested(
    used: dict[str, object], shallow_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, object] = {**SETTINGS, "training.batch_size": 32, **used}
    config = configuration(shallow_checkpoint, make_dataset(tmp_path, 1, resolution=512), tmp_path / "runs", changes)

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(TrainingRecipe, "compute_loss", fail)
    error = error_of(train_here(config))
    assert error.kind == "memory"
    assert f"What helps most: {helps_most(config)} (about " in error.hint
    assert not any(f"{key} = " in error.hint for key in used)


# numbers


def test_after_a_loss_overflows_the_run_resumes_from_the_checkpoint_before_it(
    shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path, expected: bytes
) -> None:
    config = configuration(shallow_checkpoint, dataset_folder, tmp_path, SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        honest = TrainingRecipe.compute_loss
        overflows = lambda self, inputs: honest(self, inputs) * (float("nan") if self.state.step >= 2 else 1)  # noqa: E731
        patch.setattr(TrainingRecipe, "compute_loss", overflows)
        trained = train_here(config)
    error = error_of(trained)
    assert (trained.status, error.kind) == (1, "nan")
    assert "The loss became nan at step 3" in error.message
    assert "learning rate (0.001, try 0.00025)" in error.hint
    assert "checkpoint of step 2 is kept" in error.hint
    saved, values = states.newest(trained.run.checkpoints)
    assert saved is not None and values is not None and saved.step == 2
    assert adapter.all_finite(values["lora"])
    assert train_here(config).run.lora.read_bytes() == expected


def test_overflowed_weights_are_not_saved_as_a_checkpoint(
    shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path, expected: bytes
) -> None:
    config = configuration(shallow_checkpoint, dataset_folder, tmp_path, SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        honest = TrainingRecipe.update_weights

        def update_weights(self: TrainingRecipe, *arguments: Any) -> None:
            honest(self, *arguments)
            if self.state.step == 4:
                self.model.parameters[0].data.fill_(float("inf"))

        patch.setattr(TrainingRecipe, "update_weights", update_weights)
        trained = train_here(config)
    assert "no longer finite after step 4" in error_of(trained).message
    assert sorted(path.name for path in trained.run.checkpoints.iterdir()) == ["step-000002"]
    assert train_here(config).run.lora.read_bytes() == expected


# the dataset


def test_a_dataset_that_is_deleted_during_training_is_not_missed(
    shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path, expected: bytes, at_step: AtStep
) -> None:
    copied = shutil.copytree(dataset_folder, tmp_path / "data")
    at_step(3, lambda: shutil.rmtree(copied))
    trained = train_here(configuration(shallow_checkpoint, copied, tmp_path / "runs", SETTINGS))
    assert trained.status == 0
    assert not copied.exists()
    assert trained.run.lora.read_bytes() == expected


def test_a_dataset_edited_during_a_run_is_trained_as_it_was_and_is_a_new_run_afterwards(
    shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path, expected: bytes, at_step: AtStep
) -> None:
    copied = shutil.copytree(dataset_folder, tmp_path / "data")
    caption = next(copied.glob("*.txt"))

    def edit() -> None:
        caption.write_text("another caption", encoding="utf-8")

    at_step(3, edit)
    config = configuration(shallow_checkpoint, copied, tmp_path / "runs", SETTINGS)
    trained = train_here(config)
    assert trained.run.lora.read_bytes() == expected
    assert prepare_run(config).folder.path != trained.run.path


def test_a_dataset_that_changes_before_the_child_starts_is_refused(shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(dataset_folder, tmp_path / "data")
    config = configuration(shallow_checkpoint, copied, tmp_path / "runs", SETTINGS)
    run = prepare_run(config).folder
    run.path.mkdir(parents=True)
    run.config.write_text(config.to_json(), encoding="utf-8")
    next(copied.glob("*.txt")).write_text("another caption", encoding="utf-8")
    status = train_run(run.path, watch_stdin=False)
    error = error_of(Trained(status, run, read_events(run.events)))
    assert (status, error.kind) == (1, "dataset")
    assert "changed while the run was starting" in error.message


def test_an_image_replaced_by_another_of_its_size_is_named_and_not_cached(
    shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(dataset_folder, tmp_path / "data")
    first, second = sorted(copied.glob("*.png"))[:2]
    shutil.copyfile(second, first)
    config = configuration(shallow_checkpoint, copied, tmp_path / "runs", SETTINGS)
    run = tmp_path / "runs" / "started"
    run.mkdir(parents=True)
    (run / "config.json").write_text(config.to_json(), encoding="utf-8")
    assert train_run(run, watch_stdin=False) == 1, "the child does not check"
    (told,) = (event for event in read_events(run / "events.jsonl") if isinstance(event, events.Error))
    with pytest.raises(UserError) as caught:
        prepare_run(config)
    for error in (told, caught.value):
        assert error.kind == "dataset"
        assert first.name in error.message
        assert "Dataset Prep again" in error.hint
    assert not list((tmp_path / "runs").rglob("latents/**/*.safetensors"))


# files that lie


def rewrite(state: Path, values: object) -> None:
    """Replace a state by another, with correct checksums."""
    torch.save(values, state / "state.pt")
    record = read_sealed(state / "state.json")
    write_sealed(state / "state.json", {**record, "sha256": sha256_file(state / "state.pt")})


def test_a_saved_state_that_contains_code_is_skipped_and_never_run(stopped: RunConfig, expected: bytes, tmp_path: Path) -> None:
    run = prepare_run(stopped).folder
    rewrite(run.checkpoints / "step-000006", {"lora": {}, "average": Evil(tmp_path / "it ran")})
    (run.checkpoints / "step-000004" / "state.json").write_text("[" * 100_000, encoding="utf-8")
    trained = train_here(stopped)
    plans = [event.start_step for event in trained.told if isinstance(event, events.Plan)]
    assert plans == [0, 2]
    assert trained.run.lora.read_bytes() == expected
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("wrong", ["shape", "nan", "type", "empty"])
def test_a_saved_state_of_another_run_is_named_and_not_used(stopped: RunConfig, wrong: str) -> None:
    run = prepare_run(stopped).folder
    state = run.checkpoints / "step-000006"
    values = torch.load(state / "state.pt", weights_only=True)
    first = next(iter(values["lora"]))
    if wrong == "shape":
        values["lora"][first] = torch.zeros(3, 5)
    elif wrong == "nan":
        values["lora"][first].fill_(float("nan"))
    rewrite(state, {"shape": values, "nan": values, "type": {**values, "optimizer": [1]}, "empty": {}}[wrong])
    error = error_of(train_here(stopped))
    assert error.kind == "state"
    assert str(state) in error.message
    assert "Delete that folder" in error.hint
    shutil.rmtree(state)
    assert train_here(stopped).status == 0


@pytest.mark.parametrize("wrong", ["shape", "nan", "names"])
def test_an_invalid_cached_latent_is_encoded_again(
    wrong: str, undisturbed: RunFolder, shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path, expected: bytes
) -> None:
    config = configuration(shallow_checkpoint, dataset_folder, tmp_path, SETTINGS)
    shutil.copytree(undisturbed.path.parent / "_cache", tmp_path / "_cache")
    for path in (tmp_path / "_cache" / "latents").rglob("*.safetensors"):
        tensors = load_file(path)
        if wrong == "names":
            tensors = {"other": torch.ones(2)}
        else:
            tensors["mean"] = torch.zeros(4, 3, 3) if wrong == "shape" else torch.full_like(tensors["mean"], float("nan"))
        save_file(tensors, path, {"crc32": _checksum(tensors)})
    assert train_here(config).run.lora.read_bytes() == expected
