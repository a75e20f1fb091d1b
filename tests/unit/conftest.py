"""Fixtures of the core's tests."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.unit.training_helpers import UNDISTURBED, configuration, make_dataset, train_here
from trainer.config.run_config import RunConfig
from trainer.launch import launcher
from trainer.launch.prepared_run import prepare_run
from trainer.runs.run_folder import RunFolder


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """One torch thread here and in children: tiny models gain nothing from more, and the same bits need the same number."""
    import torch

    threads, setting = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    yield
    torch.set_num_threads(threads)
    if setting is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = setting


@pytest.fixture
def quick_children(quick_trainer: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Training children whose libraries are loaded already; not for tests that send them signals."""
    program, command = quick_trainer(Path(sys.executable)), launcher.command
    monkeypatch.setattr(launcher, "command", lambda run: [str(program), *command(run)[1:]])


@pytest.fixture(scope="session")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of 64 pixels with a caption each. Not to be changed: copy it first."""
    return make_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cached latents and prompts of tests that use ``runs``."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def runs(shared_cache: Path, tmp_path: Path) -> Path:
    """An empty folder for runs that share their caches with those of other tests, so that each image is encoded once."""
    folder = tmp_path / "runs"
    folder.mkdir()
    with suppress(OSError):  # without the right to make links, each test fills its own cache
        (folder / "_cache").symlink_to(shared_cache, target_is_directory=True)
    return folder


@pytest.fixture(scope="package")
def undisturbed(one_thread: None, shallow_checkpoint: Path, dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that nothing disturbed, with states at 2, 4 and 6. Not to be changed: copy the folder that it lies in."""
    trained = train_here(configuration(shallow_checkpoint, dataset_folder, tmp_path_factory.mktemp("undisturbed"), UNDISTURBED))
    assert trained.status == 0
    return trained.run


@pytest.fixture(scope="package")
def expected(undisturbed: RunFolder) -> bytes:
    """Its LoRA."""
    return undisturbed.lora.read_bytes()


@pytest.fixture
def stopped(undisturbed: RunFolder, shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path) -> RunConfig:
    """A run that ended just before its export, with states at 2, 4 and 6."""
    shutil.copytree(undisturbed.path.parent, tmp_path / "runs")
    config = configuration(shallow_checkpoint, dataset_folder, tmp_path / "runs", UNDISTURBED)
    run = prepare_run(config).folder
    run.lora.unlink()
    run.result.unlink()
    return config
