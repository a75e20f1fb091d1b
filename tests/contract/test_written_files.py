"""The fingerprint of written files changes when a file is deleted, and not when one is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

Helper = Callable[[str], ModuleType]


@pytest.fixture
def written(helper: Helper) -> Iterator[ModuleType]:
    module = helper("written_files")
    module._WRITTEN.clear()
    yield module
    module._WRITTEN.clear()


@pytest.mark.parametrize("name", ["style", None], ids=["typed", "linked"])
def test_a_deleted_file_changes_the_fingerprint_once(written: ModuleType, tmp_path: Path, name: str | None) -> None:
    file = tmp_path / "style.safetensors"
    fingerprints = [written.files_fingerprint("TrainLora", name)]
    file.touch()
    written.record_file("TrainLora", "style", file)
    assert written.files_fingerprint("TrainLora", name) == fingerprints[0], "the node would run again for nothing"
    for _ in range(3):
        file.unlink()
        changed = written.files_fingerprint("TrainLora", name)
        assert changed not in fingerprints
        assert written.files_fingerprint("TrainLora", name) == changed
        file.touch()
        written.record_file("TrainLora", "style", file)
        assert written.files_fingerprint("TrainLora", name) == changed, "the node would run again for nothing"
        fingerprints.append(changed)


def test_files_of_other_nodes_and_names_do_not_count(written: ModuleType, tmp_path: Path) -> None:
    for node, name in (("TrainLora", "style"), ("TrainLora", "other"), ("PickEpoch", "style")):
        (tmp_path / f"{node}{name}").touch()
        written.record_file(node, name, tmp_path / f"{node}{name}")
    before = written.files_fingerprint("TrainLora", "style")
    (tmp_path / "TrainLoraother").unlink()
    (tmp_path / "PickEpochstyle").unlink()
    assert written.files_fingerprint("TrainLora", "style") == before
