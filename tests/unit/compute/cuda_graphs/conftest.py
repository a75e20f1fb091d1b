"""A recorder that every run uses in place of CUDA graphs, and a dataset with batches of different sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.compute.cuda_graphs.recording import Repeating
from tests.unit.training_helpers import make_dataset
from trainer.compute.cuda_graphs import recorded_passes
from trainer.plan import planning


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Repeating]:
    """Every run records, with a stand-in."""

    class Own(Repeating):
        pass

    monkeypatch.setattr(planning, "_uses_cuda_graphs", lambda *_: True)
    monkeypatch.setattr(recorded_passes, "CudaRecorder", Own)
    return Own


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures: batches of two, two and one."""
    return make_dataset(tmp_path_factory.mktemp("five"), 5)
