"""The progress of long work reaches its listener and nobody else."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

from demo import run_demo
from tests.unit.dataset.drawings import folder_of
from tests.unit.lorafile.helpers import lora_tensors, small_layers
from trainer import lorafile
from trainer.cli import main
from trainer.commands.progress_bar import TrainingProgress
from trainer.core.files.reading import sha256_file
from trainer.core.work.progress import ProgressLines, format_progress, report_progress, send_progress_to, track
from trainer.dataset import PrepareSettings, contact_sheet, export_dataset, prepare_dataset
from trainer.families.sd1 import FAMILY
from trainer.training.monitoring.latent_sampling import sample_latents

Reports = list[tuple[str, int, int]]


@pytest.fixture
def reports() -> Reports:
    """The reports that a listener received."""
    return []


def listen(reports: Reports) -> Any:
    return send_progress_to(lambda what, done, total: reports.append((what, done, total)))


def last_reports(reports: Reports) -> dict[str, tuple[int, int]]:
    """The last report of each kind of work, after checking that counts never decrease."""
    last: dict[str, tuple[int, int]] = {}
    for what, done, total in reports:
        assert done >= last.get(what, (0, 0))[0]
        last[what] = (done, total)
    return last


def test_progress_reaches_the_listener_only_within_its_block(reports: Reports) -> None:
    report_progress("hashing", 1, 2)
    with listen(reports):
        assert list(track("ab", "counting", 2)) == ["a", "b"]
        with send_progress_to(None):
            report_progress("hashing", 1, 2)
    report_progress("hashing", 2, 2)
    assert reports == [("counting", 0, 2), ("counting", 1, 2), ("counting", 2, 2)]


def test_hashing_reports_bytes(tmp_path: Path, reports: Reports) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(range(256)) * 10_000)
    with listen(reports):
        digest = sha256_file(path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert last_reports(reports) == {"hashing model.safetensors": (2_560_000, 2_560_000)} and len(reports) == 3


def test_exporting_and_the_contact_sheet_report_images(tmp_path: Path, reports: Reports) -> None:
    settings = PrepareSettings(trigger="a", class_description="girl", resolution=64)
    dataset = prepare_dataset(folder_of(tmp_path / "in", 3), tmp_path / "out", settings).dataset
    with listen(reports):
        export_dataset(dataset, "imagefolder")
        assert last_reports(reports) == {"exporting images": (3, 3)}
        reports.clear()
        export_dataset(dataset, "kohya")
        assert reports == [("exporting images", number, 3) for number in range(3)]
        contact_sheet(dataset)
    assert last_reports(reports)["drawing the contact sheet"] == (3, 3)


def test_merging_and_reducing_the_rank_report_layers(tmp_path: Path, reports: Reports) -> None:
    path, layers = tmp_path / "a.safetensors", small_layers()
    save_file(lora_tensors(layers, rank=4, alpha=2.0), path)
    weights = lorafile.read_lora(path)
    with listen(reports):
        lorafile.merge([(weights, 1.0), (weights, 0.5)], 2)
        lorafile.reduce_rank(weights, 2)
    count = len(layers)
    assert last_reports(reports) == {"merging layers": (count, count), "reducing the rank": (count, count)}


def test_sampling_reports_steps(reports: Reports) -> None:
    def unet(scaled: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
        return (torch.zeros_like(scaled),)

    stub: Any = unet
    size: dict[str, Any] = {"width": 64, "height": 64, "device": torch.device("cpu"), "dtype": torch.float32}
    with listen(reports):
        condition = {"embeds": torch.zeros(77, 8)}
        sample_latents(stub, FAMILY, condition, condition, steps=3, guidance=7.0, generator=torch.Generator(), **size)
    assert reports == [("sampling steps", done, 3) for done in range(4)]


def test_the_demo_reports_its_portraits(reports: Reports) -> None:
    class Stub:
        def apply_loras(self, loras: Any) -> None:
            """Nothing is loaded."""

        def generate_with_diffusers(self, prompt: str, image: Image.Image | None = None, **_: Any) -> Image.Image:
            return image or Image.new("RGB", (run_demo.SIZE, run_demo.SIZE))

    stub: Any = Stub()
    with listen(reports):
        run_demo.paint(stub, object(), run_demo.QUICK)
        run_demo.dataset_source(2)
    tests = run_demo.QUICK.tests
    texts = 2 * len(run_demo.text_portraits(run_demo.QUICK))
    assert sorted(count for count in last_reports(reports).values()) == sorted([(tests, tests)] * 3 + [(texts, texts)] * 2 + [(2, 2)])


def test_progress_lines_keep_their_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("trainer.core.work.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    lines = ProgressLines(stream)
    for second in range(13):
        now[0] = float(second)
        lines("hashing a.safetensors", second * 1_000_000, 20_000_000)
    lines("merging layers", 3, 12)
    assert stream.getvalue() == "hashing a.safetensors: 25 %\nhashing a.safetensors: 50 %\n"
    now[0] = 15.0
    lines("merging layers", 4, 12)
    assert stream.getvalue().endswith("merging layers: 4 of 12\n")
    assert format_progress(0, 0) == "0"


def test_commands_print_progress_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("trainer.cli.ProgressLines", lambda: ProgressLines(interval=-1.0))
    arguments = ["prepare", str(folder_of(tmp_path / "in", 2)), "--out", str(tmp_path / "out"), "--trigger", "a", "--resolution", "64"]
    assert main([*arguments, "--export", "imagefolder", "--json"]) == 0
    lines = capsys.readouterr().err
    assert "preparing images: 2 of 2" in lines and "exporting images: 2 of 2" in lines


def test_the_training_bar_shows_work_before_the_training() -> None:
    stream = io.StringIO()
    with TrainingProgress(Console(file=stream, width=200, force_terminal=True)) as progress:
        progress.work("hashing [red]a[/].safetensors", 30_000_000, 60_000_000)
    assert "hashing [red]a[/].safetensors" in stream.getvalue() and "50 %" in stream.getvalue()


@pytest.mark.parametrize(("done", "total", "expected"), [(3, 12, "3/12"), (30_000_000, 60_000_000, "50/100")], ids=["images", "bytes"])
def test_the_training_bar_moves_with_the_work(done: int, total: int, expected: str) -> None:
    stream = io.StringIO()
    with TrainingProgress(Console(file=stream, width=200, force_terminal=True)) as progress:
        progress.work("exporting", done, total)
    assert " ".join(stream.getvalue().split()).count(expected) > 0
