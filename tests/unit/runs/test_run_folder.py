"""Run folders: identity, finding a finished run, publishing, and changes of the files around a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.training_helpers import configuration, make_dataset, train_here
from trainer.core.errors import UserError
from trainer.launch.prepared_run import prepare_run
from trainer.runs import events, states
from trainer.runs.event_log import loss_history, read_events, read_events_of, read_samples
from trainer.runs.publish import publish
from trainer.runs.run_folder import RunFolder


def step(number: int, loss: float) -> events.Step:
    return events.Step(number, 9, 1, loss, loss, 1e-4, 1.0, 1.0, 0.0, 0.1)


def write_log(path: Path, *lines: events.Event | str) -> None:
    path.write_text("\n".join(line if isinstance(line, str) else events.encode_event(line) for line in lines) + "\n", encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run folder with a LoRA of three bytes."""
    folder = RunFolder(tmp_path / "runs" / "style-0123456789abcdef", "style")
    folder.path.mkdir(parents=True)
    folder.lora.write_bytes(b"one")
    return folder


def test_a_run_is_found_only_if_it_is_complete_and_undamaged(run: RunFolder) -> None:
    assert run.finished() is None
    run.write_result(steps=9, loss=0.5, seconds=3.0)
    found = run.finished()
    assert found is not None and found.reused and (found.lora, found.steps, found.loss) == (run.lora, 9, 0.5)
    run.lora.write_bytes(b"two")
    assert run.finished() is None


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"steps": 1}', '{"lora_sha256": 5, "steps": "x"}'])
def test_a_run_with_a_damaged_result_is_not_finished(run: RunFolder, content: str) -> None:
    run.result.write_text(content)
    assert run.finished() is None


def test_publishing_never_overwrites_a_different_file(run: RunFolder, tmp_path: Path) -> None:
    loras = tmp_path / "loras"
    loras.mkdir()
    (loras / "style.safetensors").write_bytes(b"somebody else's")
    place = publish(run, str(loras))
    assert place == loras / "style_2.safetensors"
    assert place.read_bytes() == b"one"
    assert publish(run, str(loras)) == place
    assert (loras / "style.safetensors").read_bytes() == b"somebody else's"
    place.write_bytes(b"changed by hand")
    assert publish(run, str(loras)) == loras / "style_3.safetensors"
    for number in range(3, 100):
        (loras / f"style_{number}.safetensors").write_bytes(b"another")
    with pytest.raises(UserError) as caught:
        publish(run, str(loras))
    assert caught.value.kind == "output"
    assert str(run.lora) in caught.value.hint
    assert place.read_bytes() == b"changed by hand"


def test_a_lora_that_an_earlier_version_published_under_its_identity_is_found(run: RunFolder, tmp_path: Path) -> None:
    loras = tmp_path / "loras"
    loras.mkdir()
    old = loras / "style-0123456789abcdef.safetensors"
    old.write_bytes(run.lora.read_bytes())
    assert publish(run, str(loras)) == old
    assert list(loras.iterdir()) == [old]


def test_publishing_again_finds_the_file_and_an_empty_folder_publishes_nothing(run: RunFolder, tmp_path: Path) -> None:
    first = publish(run, str(tmp_path / "a" / "new" / "folder"))
    assert first is not None and first.name == "style.safetensors"
    stamp = first.stat().st_mtime_ns
    assert publish(run, str(first.parent)) == first
    assert first.stat().st_mtime_ns == stamp
    assert publish(run, "") is None


def test_the_loss_history_has_a_repeated_step_once_with_its_last_value(tmp_path: Path) -> None:
    write_log(tmp_path / "e", step(1, 0.9), "half a li", step(2, 0.8), events.Stopped(1, ""), step(2, 0.7), step(3, 0.6))
    assert [(each.step, each.loss) for each in loss_history(tmp_path / "e")] == [(1, 0.9), (2, 0.7), (3, 0.6)]
    assert loss_history(tmp_path / "none") == []


def test_only_samples_that_still_exist_are_listed_in_order(tmp_path: Path) -> None:
    for name in ("b", "c"):
        (tmp_path / name).touch()
    told = [events.Sample(str(tmp_path / name), "p", epoch, 0, index) for name, epoch, index in (("b", 1, 1), ("c", 1, 0), ("gone", 0, 0))]
    write_log(tmp_path / "e", *told, told[0])
    assert [image.path.name for image in read_samples(tmp_path / "e")] == ["c", "b"]


def test_reading_events_of_one_kind_finds_all_of_them(undisturbed: RunFolder) -> None:
    log = read_events(undisturbed.events)
    for kind in events.TYPES.values():
        assert read_events_of(undisturbed.events, kind) == [event for event in log if isinstance(event, kind)]


def test_the_newest_undamaged_state_is_used(tmp_path: Path) -> None:
    assert states.newest(tmp_path) == (None, None)
    for number in (2, 10, 9):
        states.save(tmp_path, number, {"tensor": torch.full((3,), float(number)), "average": 0.5})
    saved, values = states.newest(tmp_path)
    assert saved is not None and values is not None and saved.step == 10 and values["tensor"].tolist() == [10, 10, 10]

    def newest_step() -> int:
        found, _ = states.newest(tmp_path)
        return found.step if found else 0

    with (tmp_path / "step-000010" / "state.pt").open("r+b") as file:
        file.seek(200)
        byte = file.read(1)
        file.seek(200)
        file.write(bytes([byte[0] ^ 1]))
    assert newest_step() == 9
    (tmp_path / "step-000009" / "state.json").write_text("{")
    assert newest_step() == 2
    (tmp_path / "step-nonsense").mkdir()
    (tmp_path / "step-000099").mkdir()
    assert newest_step() == 2


def test_saving_a_state_again_replaces_it_and_old_states_are_deleted(tmp_path: Path) -> None:
    for number, value in ((1, 1), (2, 2), (3, 3), (3, 4)):
        states.save(tmp_path, number, {"value": value})
    states.delete_old(tmp_path, 0)
    assert len(list(tmp_path.iterdir())) == 3
    states.delete_old(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000003"]
    _, values = states.newest(tmp_path)
    assert values == {"value": 4}


def test_the_lora_beside_a_deleted_state_is_kept(tmp_path: Path) -> None:
    for number in (1, 2):
        states.save(tmp_path, number, {"value": number})
        (states.state_folder(tmp_path, number) / "style.safetensors").touch()
    states.delete_old(tmp_path, 1)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["step-000001/style.safetensors", *(f"step-000002/{name}" for name in ("state.json", "state.pt", "style.safetensors"))]
    assert states.newest_step(tmp_path) == 2


def test_the_identity_of_a_run_changes_only_with_what_changes_its_result(
    shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    def name(changes: dict[str, object], dataset: Path = dataset_folder, checkpoint: Path = shallow_checkpoint) -> str:
        return prepare_run(configuration(checkpoint, dataset, tmp_path / "runs", changes)).folder.path.name

    same, moved = name({}), tmp_path / "moved"
    shutil.copytree(dataset_folder, moved)
    copied = shutil.copyfile(shallow_checkpoint, tmp_path / "copied.safetensors")
    for again in (name({}, moved), name({}, checkpoint=copied), name({"output.publish": str(tmp_path)})):
        assert again == same
    with copied.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x3c")
    others = [
        name({}, checkpoint=copied),
        name({"optimizer.lr": 2e-3}),
        name({"training.seed": 7}),
        name({"sample.prompts": ["x"]}),
        name({}, make_dataset(tmp_path / "fewer", 5)),
        name({}, make_dataset(tmp_path / "captions", trigger="other")),
        name({}, make_dataset(tmp_path / "repeats", repeats=2)),
    ]
    assert len({same, *others}) == len(others) + 1


def test_a_relative_path_means_the_same_in_parent_and_child(
    shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.config.run_config import absolute, load_config

    shutil.copytree(dataset_folder, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    relative = configuration(shallow_checkpoint, Path("data"), Path("runs"))
    for whole in (absolute(relative), absolute(absolute(relative))):
        assert Path(whole.dataset.path) == tmp_path / "data"
        assert Path(whole.output.runs) == tmp_path / "runs"
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "config.json").write_text(absolute(relative).to_json(), encoding="utf-8")
    assert load_config(tmp_path / "deep" / "config.json") == absolute(relative)


def cache_files(runs: Path, kind: str) -> list[Path]:
    return sorted((runs / "_cache" / kind).rglob("*.safetensors"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip_a_bit], ids=["cut", "bit"])
@pytest.mark.seconds
def test_a_damaged_cache_file_is_encoded_again(
    shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    runs = tmp_path / "runs"
    clean = train_here(configuration(shallow_checkpoint, dataset_folder, runs, {"training.max_steps": 3}))
    whole = {path: path.read_bytes() for kind in ("latents", "prompts") for path in cache_files(runs, kind)}
    assert len(cache_files(runs, "latents")) == 6
    for path in whole:
        damage(path)
    shutil.rmtree(clean.run.path)
    again = train_here(configuration(shallow_checkpoint, dataset_folder, runs, {"training.max_steps": 3}))
    assert again.status == 0
    assert [each.loss for each in again.steps] == [each.loss for each in clean.steps]
    assert all(path.read_bytes() == whole[path] for path in cache_files(runs, "latents"))
    # the empty prompt, which this run encodes but never reads, can stay damaged
    assert sum(path.read_bytes() == whole[path] for path in cache_files(runs, "prompts")) >= len(cache_files(runs, "prompts")) - 1 > 0


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [remove, cut], ids=["deleted", "cut"])
def test_an_image_that_changed_after_preparation_is_refused(
    shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    shutil.copytree(dataset_folder, tmp_path / "data")
    victim = sorted((tmp_path / "data").rglob("*.png"))[2]
    damage(victim)
    try:
        told = train_here(configuration(shallow_checkpoint, tmp_path / "data", tmp_path / "runs")).told[-1]
        assert isinstance(told, events.Error)
        kind, message, hint = told.kind, told.message, told.hint
    except UserError as error:  # detected before a child starts
        kind, message, hint = error.kind, error.message, error.hint
    assert kind == "dataset"
    assert victim.name in message
    assert "repare" in hint or "Dataset Prep" in hint


def test_an_unknown_failure_keeps_its_type_and_names_the_log(
    shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("trainer.training.fill_caches.fill_latents", broken)
    error = train_here(configuration(shallow_checkpoint, dataset_folder, tmp_path)).told[-1]
    assert isinstance(error, events.Error)
    assert (error.kind, "ZeroDivisionError: a defect" in error.message, "child.log" in error.hint) == ("internal", True, True)


def test_no_event_is_lost_after_a_child_is_killed_while_writing_a_line(tmp_path: Path) -> None:
    from trainer.training.event_writer import EventLog

    (tmp_path / "e").write_text(events.encode_event(events.Phase("training")) + "\n" + '{"event": "ste', encoding="utf-8")
    EventLog(tmp_path / "e")(events.Phase("loading"))
    assert [event.phase for event in read_events(tmp_path / "e") if isinstance(event, events.Phase)] == ["training", "loading"]


@pytest.mark.seconds
def test_the_configuration_in_the_run_folder_is_the_one_that_was_trained(
    shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    config = configuration(shallow_checkpoint, dataset_folder, tmp_path, {"training.max_steps": 1})
    trained = train_here(config)
    assert json.loads(trained.run.config.read_text(encoding="utf-8")) == json.loads(config.to_json())
    assert trained.run.finished() is not None
