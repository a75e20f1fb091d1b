"""Links and pipes in place of a run's files, and lone surrogates in its texts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.training_helpers import configuration
from trainer.config import run_config
from trainer.core.errors import UserError
from trainer.core.files.reading import read_regular, sha256_file
from trainer.core.files.writing import write_atomic
from trainer.families import family_named
from trainer.launch.prepared_run import PreparedRun, write_run_folder
from trainer.runs import events
from trainer.runs import states as resume
from trainer.runs.event_log import loss_history, read_events, read_samples
from trainer.runs.pruning import prune
from trainer.runs.run_folder import RunFolder
from trainer.runs.run_times import start_day
from trainer.runs.saved_lora import is_undamaged, write_record
from trainer.training.event_writer import EventLog

posix = pytest.mark.skipif(os.name == "nt", reason="NOT CHECKED: pipes and links are POSIX")
VALUES: dict[str, Any] = {"lora": {"a": torch.ones(2)}, "schedule": {"last_epoch": 2}}
HALF = "style \ud800"


@posix
def test_a_pipe_in_place_of_a_run_file_does_not_block(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "style-0123", "style")
    run.path.mkdir()
    for path in (run.events, run.result, run.started, run.lora):
        os.mkfifo(path)
    assert (read_events(run.events), loss_history(run.events), read_samples(run.events)) == ([], [], ())
    assert (run.finished(), run.lora_digest()) == (None, "")
    assert start_day(run, record=False) % 86_400 == 0
    with pytest.raises(OSError, match="pipe"):
        sha256_file(run.lora)


@posix
def test_a_pipe_in_place_of_a_lora_record_does_not_block(tmp_path: Path) -> None:
    lora = tmp_path / "style-000001.safetensors"
    lora.write_bytes(b"a LoRA")
    write_record(lora)
    assert is_undamaged(lora)
    (tmp_path / "lora.json").unlink()
    os.mkfifo(tmp_path / "lora.json")
    assert not is_undamaged(lora)


@posix
@pytest.mark.parametrize("what", ["link", "pipe", "folder"])
@pytest.mark.parametrize("name", ["events.jsonl", "child.log"])
def test_training_does_not_start_if_its_log_is_not_a_regular_file(tmp_path: Path, what: str, name: str) -> None:
    outside, run = tmp_path / "outside", RunFolder(tmp_path / "style-0123", "style")
    outside.write_text("mine", encoding="utf-8")
    run.path.mkdir()
    place = run.path / name
    if what == "link":
        place.symlink_to(outside)
    elif what == "pipe":
        os.mkfifo(place)
    else:
        place.mkdir()
    settings = configuration(tmp_path / "a.safetensors", tmp_path, tmp_path)
    with pytest.raises(UserError, match=f"{name} is a {what}") as caught:
        write_run_folder(PreparedRun(run, settings, family_named("sd1")))
    assert "Remove it" in caught.value.hint
    assert outside.read_text(encoding="utf-8") == "mine"


@posix
def test_a_link_in_place_of_a_state_is_replaced_and_its_target_untouched(tmp_path: Path) -> None:
    states, elsewhere = tmp_path / "run" / "checkpoints", tmp_path / "elsewhere"
    resume.save(elsewhere, 2, VALUES)
    resume.save(states, 1, VALUES | {"schedule": {"last_epoch": 1}})
    link = resume.state_folder(states, 2)
    link.symlink_to(elsewhere / "step-000002")
    skipped: list[tuple[str, str]] = []
    saved, _ = resume.newest(states, skipped=lambda path, reason: skipped.append((path.name, reason)))
    assert saved is not None and saved.step == resume.newest_step(states) == 1
    assert skipped == [("step-000002", "it is a link")]
    before = sorted(path.name for path in (elsewhere / "step-000002").iterdir())
    resume.delete_old(states, 1)
    (tmp_path / "run" / "events.jsonl").touch()
    prune(tmp_path, days=0, dry_run=False)
    assert sorted(path.name for path in (elsewhere / "step-000002").iterdir()) == before
    resume.save(states, 2, VALUES)
    assert not link.is_symlink() and resume.newest_step(states) == 2
    assert sorted(path.name for path in (elsewhere / "step-000002").iterdir()) == before


@posix
def test_a_state_that_holds_a_pipe_is_skipped(tmp_path: Path) -> None:
    resume.save(tmp_path, 1, VALUES | {"schedule": {"last_epoch": 1}})
    for name in resume.STATE_FILES:
        folder = tmp_path / f"step-00000{2 + resume.STATE_FILES.index(name)}"
        folder.mkdir()
        os.mkfifo(folder / name)
    saved, _ = resume.newest(tmp_path)
    assert saved is not None and saved.step == 1


def test_a_lone_surrogate_is_kept_in_json_and_escaped_in_text(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, json.dumps({"caption": HALF}, ensure_ascii=False))
    assert json.loads(path.read_text(encoding="utf-8")) == {"caption": HALF}
    write_atomic(path, f"{HALF} 猫\n")
    assert path.read_text(encoding="utf-8") == "style \\ud800 猫\n"


def test_a_lone_surrogate_survives_the_event_log(tmp_path: Path) -> None:
    emit = EventLog(tmp_path / "events.jsonl")
    emit(events.Warning_(HALF))
    emit(events.Sample(f"/samples/{HALF}.png", HALF, 1, 2, 0))
    assert read_regular(tmp_path / "events.jsonl", 1 << 20).isascii()
    warning, sample = read_events(tmp_path / "events.jsonl")
    assert isinstance(warning, events.Warning_) and warning.message == HALF
    assert isinstance(sample, events.Sample) and sample.prompt == HALF


@pytest.mark.parametrize("key", ["name", "base.checkpoint", "dataset.path", "sample.prompts", "output.runs"])
def test_a_lone_surrogate_in_a_configuration_is_refused(tmp_path: Path, key: str) -> None:
    data: dict[str, Any] = {"base": {"checkpoint": "a"}, "dataset": {"path": "b"}}
    section, _, name = key.rpartition(".")
    (data.setdefault(section, {}) if section else data)[name] = [HALF] if name == "prompts" else HALF
    path = tmp_path / "a.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(UserError, match=key.replace(".", r"\.")) as caught:
        run_config.load_config(path)
    str(caught.value).encode("utf-8")
