"""What happens only once between a configuration and the first step of the training child."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.unit.training_helpers import configuration
from trainer.config import run_config
from trainer.config.run_config import RunConfig
from trainer.launch import launcher
from trainer.launch.prepared_run import prepare_run, write_run_folder
from trainer.training.run import train_run

MANIFEST = "manifest.jsonl"
_opened: Counter[str] | None = None


@cache  # a hook cannot be removed
def _count_openings() -> None:
    def hook(event: str, arguments: Any) -> None:
        if _opened is not None and event == "open" and isinstance(arguments[0], str):
            _opened[Path(arguments[0]).name] += 1

    sys.addaudithook(hook)


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Count how often files are opened (by name), memory is ``settled``, and a checkpoint or LoRA is ``hashed`` in this process."""
    global _opened
    counts: Counter[str] = Counter()

    def count(function: str, name: str) -> None:
        module, _, attribute = function.rpartition(".")
        original = getattr(sys.modules[module], attribute)

        def counted(*arguments: Any, **named: Any) -> Any:
            counts[name] += 1
            return original(*arguments, **named)

        patch.setattr(function, counted)

    with monkeypatch.context() as patch:
        count("trainer.plan.settle.settled", "settled")
        count("trainer.families.checkpoints.digests.sha256_file", "hashed")
        _count_openings()
        _opened = counts
        try:
            yield counts
        finally:
            _opened = None


@pytest.fixture
def config(shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path) -> RunConfig:
    """A run whose memory preset has to be worked out."""
    return configuration(shallow_checkpoint, dataset_folder, tmp_path / "runs", {"training.memory": "auto", "training.max_steps": 1})


@pytest.mark.slow
@pytest.mark.usefixtures("quick_children")
def test_the_parent_opens_the_dataset_settles_memory_and_hashes_the_checkpoint_once(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counting(monkeypatch) as counts:
        result = launcher.train(prepare_run(config))
    assert (counts[MANIFEST], counts["settled"], counts["hashed"]) == (1, 1, 1)
    assert not result.reused


@pytest.mark.seconds
def test_the_child_opens_the_dataset_once_and_neither_settles_nor_hashes_again(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepare_run(config)
    write_run_folder(run)
    with counting(monkeypatch) as counts:
        assert train_run(run.folder.path, watch_stdin=False) == 0
    assert (counts[MANIFEST], counts["settled"], counts["hashed"]) == (1, 0, 0)


def test_the_run_folder_holds_the_settled_configuration(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.core.devices.total_memory_gb", lambda device: 1e-6)
    run = prepare_run(config)
    write_run_folder(run)
    written = run_config.load_config(run.folder.config)
    assert written == run.config
    assert (written.training.memory, written.training.gradient_checkpointing, written.training.micro_batch_size) == ("auto", True, 1)


@pytest.mark.seconds
def test_a_folder_with_an_unsettled_configuration_trains(config: RunConfig) -> None:
    run = prepare_run(config).folder  # as train --prepare once wrote it
    run.path.mkdir(parents=True)
    run.config.write_text(config.to_json(), encoding="utf-8")
    assert train_run(run.path, watch_stdin=False) == 0
    assert run.finished() is not None


def test_settling_memory_does_not_change_the_identity_of_a_run_that_fits(config: RunConfig) -> None:
    plain = config.model_copy(update={"training": config.training.model_copy(update={"memory": "none"})})
    assert prepare_run(config).folder.path == prepare_run(plain).folder.path
