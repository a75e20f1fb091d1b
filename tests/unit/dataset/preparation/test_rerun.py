"""Preparing again: what is reused, after changes, stops and kills."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from tests.unit.dataset.drawings import drawing, folder_of
from tests.unit.dataset.helpers import SETTINGS
from trainer.core.errors import Cancelled, UserError
from trainer.dataset import (
    PrepareSettings,
    open_dataset,
    prepare_dataset,
)
from trainer.dataset.preparation.preparation_progress import WAITING_FOR_FOLDER

ROOT = Path(__file__).parents[4]


def test_only_an_added_image_is_processed(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 20)
    drawing(3).save(source / "3b.jpg", quality=80)  # a near duplicate must not be done again either
    first = prepare_dataset(source, tmp_path / "out", SETTINGS)
    assert (first.kept, first.reused) == (20, 0)
    stamps = {path.name: path.stat().st_mtime_ns for path in first.dataset.path.iterdir() if path.suffix in (".png", ".txt")}
    drawing(99).save(source / "new.png")
    second = prepare_dataset(source, tmp_path / "out", SETTINGS)
    assert (second.kept, second.reused) == (21, 20)
    assert second.dataset.hash != first.dataset.hash
    for name, stamp in stamps.items():
        assert (first.dataset.path / name).stat().st_mtime_ns == stamp, f"{name} was written again"


def test_unchanged_source_is_not_processed_and_keeps_the_hash(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 4)
    first, second = (prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS) for _ in range(2))
    assert second.reused == 4 and second.dataset.hash == first.dataset.hash


def test_removed_source_leaves_the_dataset_and_other_files_stay(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 3)
    folder = prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS).dataset.path
    (folder / "my notes.txt").write_text("mine", encoding="utf-8")
    (folder / "looks like ours-0123456789.png").write_bytes(b"mine")
    (tmp_path / "in" / "1.png").unlink()
    result = prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS)
    assert [item.file.split("-")[0] for item in result.dataset.items] == ["0", "2"]
    assert len(list(folder.glob("[02]-*.png"))) == 2 and not list(folder.glob("1-*"))
    assert (folder / "my notes.txt").exists() and (folder / "looks like ours-0123456789.png").exists()
    assert any("is not part of it" in warning for warning in result.report.warnings)


def test_damaged_result_is_made_again(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 3)
    first = prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS).dataset
    first.image_path(first.items[1]).write_bytes(b"cut")
    first.image_path(first.items[2]).unlink()
    with pytest.raises(UserError, match=r"1 file of the dataset .* is missing"):
        open_dataset(first.path)
    second = prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS)
    assert second.reused == 1 and second.dataset.hash == first.hash


def test_stop_keeps_finished_images(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 30)
    seen: list[str] = []
    with pytest.raises(Cancelled):
        prepare_dataset(
            tmp_path / "in", tmp_path / "out", SETTINGS, workers=1,
            progress=lambda done, total, text: seen.append(text), should_stop=lambda: seen.count("5.png") > 0,
        )  # fmt: skip
    done = len(list((tmp_path / "out" / "mk01_girl").glob("*.png")))
    assert 5 <= done < 30
    assert prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS).reused >= 5


@pytest.mark.seconds
def test_killed_run_resumes(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 40, (700, 700))
    command = [sys.executable, str(ROOT / "trainer"), "prepare", "../in", "--out", "../out", "--trigger", "mk01", "--resolution", "1024"]
    work = tmp_path / "work"
    work.mkdir()
    child = subprocess.Popen(command, cwd=work, stdout=subprocess.DEVNULL)
    out = tmp_path / "out" / "mk01"
    for _ in range(600):
        if len(list(out.glob("*.png"))) >= 3:
            break
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    assert child.wait() != 0
    (out / ".partial-left.png").write_bytes(b"half")
    done = len(list(out.glob("*.png"))) - 1
    assert done < 40, "it was not killed before it had ended"
    result = prepare_dataset(tmp_path / "in", tmp_path / "out", PrepareSettings(trigger="mk01", resolution=1024))
    assert result.kept == 40
    assert 1 <= result.reused <= done
    assert not (out / ".partial-left.png").exists()
    clean = prepare_dataset(tmp_path / "in", tmp_path / "clean", PrepareSettings(trigger="mk01", resolution=1024)).dataset
    assert clean.hash == result.dataset.hash


def test_second_process_waits_and_reuses_the_result_of_the_first(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 2)
    waits, messages = threading.Event(), []

    def progress(done: int, total: int, text: str) -> None:
        messages.append(text)
        if text == WAITING_FOR_FOLDER:
            waits.set()

    with ThreadPoolExecutor(1) as pool:
        with FileLock(str(dataset_lock(tmp_path / "out" / "mk01_girl"))):
            second = pool.submit(prepare_dataset, tmp_path / "in", tmp_path / "out", SETTINGS, progress=progress)
            assert waits.wait(60)
            assert messages[-1] == WAITING_FOR_FOLDER
        assert second.result(60).kept == 2
    assert prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS).reused == 2


def test_waiting_process_can_be_cancelled(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 1)
    messages: list[str] = []
    with FileLock(str(dataset_lock(tmp_path / "out" / "mk01_girl"))), pytest.raises(Cancelled):
        prepare_dataset(
            tmp_path / "in",
            tmp_path / "out",
            SETTINGS,
            progress=lambda done, total, text: messages.append(text),
            should_stop=lambda: messages[-1:] == [WAITING_FOR_FOLDER],
        )
    assert not (tmp_path / "out" / "mk01_girl" / "manifest.json").exists()


def dataset_lock(folder: Path) -> Path:
    """The lock file of a dataset's folder, which is made for it."""
    (folder / ".prepare").mkdir(parents=True, exist_ok=True)
    return folder / ".prepare" / "lock"


def test_truncated_image_of_an_earlier_version_is_tried_again(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 2)
    folder = prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS).dataset.path
    lines = [json.loads(line) for line in (folder / ".prepare" / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    lines[0] |= {"reason": "truncated", "message": "not a TIFF file", "file": "", "sha256": ""}
    (folder / ".prepare" / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS).kept == 2
