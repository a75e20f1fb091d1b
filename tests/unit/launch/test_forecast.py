"""What a run will do and need, as the panel and the dry run state it before the run starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.training_helpers import configuration, train_here
from trainer.cli import main
from trainer.core import devices
from trainer.core.errors import UserError
from trainer.core.messages import Setting, mentions
from trainer.launch.forecast import forecast
from trainer.plan.meta_models import MetaModels
from trainer.runs.run_folder import RunFolder


def test_forecast_of_a_new_run_hashes_nothing_and_writes_nothing(tiny_checkpoint: Path, dataset_folder: Path, tmp_path: Path) -> None:
    config = configuration(tiny_checkpoint, dataset_folder, tmp_path / "runs", {"sample.prompts": ["a cat"], "training.epochs": 2})
    coming = forecast(config, MetaModels())
    assert (coming.outlook.kind, coming.outlook.steps, coming.plan.images, coming.plan.steps) == ("starts", 6, 6, 6)
    assert coming.time is None
    assert coming.refusal is None
    (caution,) = coming.cautions
    assert "myStyle" in caution
    assert not (tmp_path / "runs").exists()


def test_run_that_does_not_fit_is_refused_with_settings_that_fit(
    tiny_checkpoint: Path, dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(tiny_checkpoint, dataset_folder, tmp_path / "runs", {"training.batch_size": 64})
    needed = forecast(config, MetaModels()).plan.memory_gb
    monkeypatch.setattr(devices, "usable_memory_gb", lambda device: needed / 1.2)
    refusal = forecast(config, MetaModels()).refusal
    assert refusal is not None and refusal.kind == "memory"
    assert Setting("training.memory", "auto") in mentions(refusal.hint)


def test_check_and_unknown_checkpoints_refuse(tiny_checkpoint: Path, dataset_folder: Path, tmp_path: Path) -> None:
    def refuse(_: object) -> None:
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        forecast(configuration(tiny_checkpoint, dataset_folder, tmp_path), MetaModels(), refuse)
    (tmp_path / "notes.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    with pytest.raises(UserError, match="cannot train on"):
        forecast(configuration(tmp_path / "notes.safetensors", dataset_folder, tmp_path), MetaModels())


@pytest.mark.seconds
def test_dry_run_states_where_training_continues_and_how_long_it_takes(
    shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = train_here(configuration(shallow_checkpoint, dataset_folder, tmp_path, {"training.gradient_accumulation": 1}))
    steps = RunFolder(trained.run.path, "style").finished()
    assert steps is not None
    longer = tmp_path / "longer.json"
    longer.write_text(
        configuration(shallow_checkpoint, dataset_folder, tmp_path, {"training.gradient_accumulation": 1, "training.epochs": 2}).to_json()
    )

    def dry_run(*options: str) -> dict[str, Any]:
        assert main(["train", str(longer), "--dry-run", "--json", *options]) == 0
        return dict(json.loads(capsys.readouterr().out))

    plan = dry_run()
    outlook: Any = plan["outlook"]
    assert (outlook["kind"], outlook["run"]) == ("continues", trained.run.path.name)
    assert (outlook["step"], outlook["steps"]) == (steps.steps, 2 * steps.steps)
    assert isinstance(plan["seconds"], float) and 0 < plan["seconds"] < 600
    assert dry_run("--from-scratch")["outlook"]["kind"] == "starts"
