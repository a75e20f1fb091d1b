"""The mark of what a node wrote: it changes when a file is gone, and not by writing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

Helper = Callable[[str], ModuleType]


@pytest.fixture
def written(helper: Helper) -> Iterator[ModuleType]:
    module = helper("written")
    module._WRITTEN.clear()
    yield module
    module._WRITTEN.clear()


@pytest.mark.parametrize("asked", ["style", None], ids=["typed", "linked"])
def test_a_deleted_file_changes_the_mark_once(written: ModuleType, tmp_path: Path, asked: str | None) -> None:
    file = tmp_path / "style.safetensors"
    marks = [written.mark("TrainLora", asked)]
    file.touch()
    written.remember("TrainLora", "style", file)
    assert written.mark("TrainLora", asked) == marks[0], "written for nothing again"
    for _ in range(3):
        file.unlink()
        gone = written.mark("TrainLora", asked)
        assert gone not in marks
        assert written.mark("TrainLora", asked) == gone
        file.touch()
        written.remember("TrainLora", "style", file)
        assert written.mark("TrainLora", asked) == gone, "written for nothing again"
        marks.append(gone)


def test_files_of_other_nodes_and_names_do_not_count(written: ModuleType, tmp_path: Path) -> None:
    for node, name in (("TrainLora", "style"), ("TrainLora", "other"), ("PickEpoch", "style")):
        (tmp_path / f"{node}{name}").touch()
        written.remember(node, name, tmp_path / f"{node}{name}")
    before = written.mark("TrainLora", "style")
    (tmp_path / "TrainLoraother").unlink()
    (tmp_path / "PickEpochstyle").unlink()
    assert written.mark("TrainLora", "style") == before
