"""Long work says how far it is, to whoever listens, and to nobody else."""

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
from tests.unit.dataset.pictures import folder_of
from tests.unit.lorafile.helpers import lora_tensors, small_layers
from trainer import lorafile
from trainer.cli import main
from trainer.commands.progress_bar import TrainingProgress
from trainer.core.files.reading import sha256_file
from trainer.core.work.progress import ProgressLines, format_progress, report_progress, send_progress_to, track
from trainer.dataset import PrepareSettings, contact_sheet, export_dataset, prepare_dataset
from trainer.families.sd1 import FAMILY
from trainer.training.monitoring.preview_sampling import sample_latents

Told = list[tuple[str, int, int]]


@pytest.fixture
def told() -> Told:
    """What a listener is told."""
    return []


def listener(told: Told) -> Any:
    return send_progress_to(lambda what, done, total: told.append((what, done, total)))


def ends(told: Told) -> dict[str, tuple[int, int]]:
    """The last count of each kind of work; counts only go up."""
    found: dict[str, tuple[int, int]] = {}
    for what, done, total in told:
        assert done >= found.get(what, (0, 0))[0]
        found[what] = (done, total)
    return found


def test_only_who_listens_is_told_and_only_while(told: Told) -> None:
    report_progress("hashing", 1, 2)
    with listener(told):
        assert list(track("ab", "counting", 2)) == ["a", "b"]
        with send_progress_to(None):
            report_progress("hashing", 1, 2)
    report_progress("hashing", 2, 2)
    assert told == [("counting", 0, 2), ("counting", 1, 2), ("counting", 2, 2)]


def test_hashing_counts_bytes(tmp_path: Path, told: Told) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(range(256)) * 10_000)
    with listener(told):
        digest = sha256_file(path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert ends(told) == {"hashing model.safetensors": (2_560_000, 2_560_000)} and len(told) == 3


def test_preparing_exporting_and_the_contact_sheet_count_images(tmp_path: Path, told: Told) -> None:
    settings = PrepareSettings(trigger="a", class_description="girl", resolution=64)
    dataset = prepare_dataset(folder_of(tmp_path / "in", 3), tmp_path / "out", settings).dataset
    with listener(told):
        export_dataset(dataset, "imagefolder")
        assert ends(told) == {"exporting images": (3, 3)}
        told.clear()
        export_dataset(dataset, "kohya")
        assert told == [("exporting images", number, 3) for number in range(3)]
        contact_sheet(dataset)
    assert ends(told)["drawing the contact sheet"] == (3, 3)


def test_merging_and_lowering_the_rank_count_layers(tmp_path: Path, told: Told) -> None:
    path, layers = tmp_path / "a.safetensors", small_layers()
    save_file(lora_tensors(layers, rank=4, alpha=2.0), path)
    weights = lorafile.read_lora(path)
    with listener(told):
        lorafile.merge([(weights, 1.0), (weights, 0.5)], 2)
        lorafile.reduce_rank(weights, 2)
    count = len(layers)
    assert ends(told) == {"merging layers": (count, count), "lowering the rank": (count, count)}


def test_sampling_counts_steps(told: Told) -> None:
    def unet(scaled: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
        return (torch.zeros_like(scaled),)

    stub: Any = unet
    size: dict[str, Any] = {"width": 64, "height": 64, "device": torch.device("cpu"), "dtype": torch.float32}
    with listener(told):
        condition = {"embeds": torch.zeros(77, 8)}
        sample_latents(stub, FAMILY, condition, condition, steps=3, guidance=7.0, generator=torch.Generator(), **size)
    assert told == [("sampling steps", done, 3) for done in range(4)]


def test_the_demo_counts_its_portraits(told: Told) -> None:
    class Stub:
        def apply_loras(self, loras: Any) -> None:
            """Nothing is loaded."""

        def generate_with_diffusers(self, prompt: str, image: Image.Image | None = None, **_: Any) -> Image.Image:
            return image or Image.new("RGB", (run_demo.SIZE, run_demo.SIZE))

    stub: Any = Stub()
    with listener(told):
        run_demo.paint(stub, object(), run_demo.QUICK)
        run_demo.dataset_source(2)
    tests = run_demo.QUICK.tests
    texts = 2 * len(run_demo.text_portraits(run_demo.QUICK))
    assert sorted(count for count in ends(told).values()) == sorted([(tests, tests)] * 3 + [(texts, texts)] * 2 + [(2, 2)])


def test_lines_come_now_and_then_and_never_for_what_is_soon_done(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("trainer.core.work.progress.time.monotonic", lambda: now[0])
    held = io.StringIO()
    lines = ProgressLines(held)
    for second in range(13):
        now[0] = float(second)
        lines("hashing a.safetensors", second * 1_000_000, 20_000_000)
    lines("merging layers", 3, 12)
    assert held.getvalue() == "hashing a.safetensors: 25 %\nhashing a.safetensors: 50 %\n"
    now[0] = 15.0
    lines("merging layers", 4, 12)
    assert held.getvalue().endswith("merging layers: 4 of 12\n")
    assert format_progress(0, 0) == "0"


def test_every_command_is_listened_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("trainer.cli.Lines", lambda: ProgressLines(every=-1.0))
    arguments = ["prepare", str(folder_of(tmp_path / "in", 2)), "--out", str(tmp_path / "out"), "--trigger", "a", "--resolution", "64"]
    assert main([*arguments, "--export", "imagefolder", "--json"]) == 0
    said = capsys.readouterr().err
    assert "preparing images: 2 of 2" in said and "exporting images: 2 of 2" in said


def test_a_training_shows_what_is_done_before_it_starts() -> None:
    held = io.StringIO()
    with TrainingProgress(Console(file=held, width=200, force_terminal=True)) as progress:
        progress.work("hashing [red]a[/].safetensors", 30_000_000, 60_000_000)
    assert "hashing [red]a[/].safetensors" in held.getvalue() and "50 %" in held.getvalue()


@pytest.mark.parametrize(("done", "total", "shown"), [(3, 12, "3/12"), (30_000_000, 60_000_000, "50/100")], ids=["images", "bytes"])
def test_the_bar_moves_with_the_work(done: int, total: int, shown: str) -> None:
    held = io.StringIO()
    with TrainingProgress(Console(file=held, width=200, force_terminal=True)) as progress:
        progress.work("exporting", done, total)
    assert " ".join(held.getvalue().split()).count(shown) > 0
