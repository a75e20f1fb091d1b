"""The benchmark's own arithmetic: counted operations, timing of steps, and the table."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from benchmarks import alternate, fill, growth, imports, limits, peers, reference, speed, start, table
from benchmarks.work import Work
from random_checkpoints import anima
from random_checkpoints.make_checkpoint import make_checkpoint
from tests.tools.children.processes import living
from trainer.config.run_config import RunConfig
from trainer.launch import launcher
from trainer.launch.prepared_run import PreparedRun
from trainer.runs import events

ROOT = Path(__file__).resolve().parents[2]
ROW: dict[str, Any] = {
    "trainer": "kohya", "label": "", "images_per_second": 0.5, "step_seconds": 2.0, "first_step_seconds": 20.0, "total_seconds": 60.0,
    "gpu_gb": None, "rss_gb": 6.25, "mfu": 0.31, "machine": "a machine", "torch": "2", "python": "3", "date": "2026-01-02 03:04",
    "work": {"model": "sd1", "resolution": 128, "batch": 1, "rank": 8, "precision": "fp32", "device": "cpu", "checkpointing": False},
}  # fmt: skip

SLEEPER = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
_STEP: dict[str, Any] = dict.fromkeys(
    ("step", "steps", "epoch", "loss", "loss_average", "lr", "grad_norm", "images_per_second", "eta", "memory_gb"), 1
)


def test_the_readme_s_table_is_that_of_the_results() -> None:
    printed = table.README.read_text(encoding="utf-8").partition(table.BEGIN)[2].partition(table.END)[0]
    assert printed.strip() == table.render(table.read(ROOT / "benchmarks" / "results")).strip()


def test_an_unmeasured_row_is_marked() -> None:
    lines = table.render([ROW]).splitlines()
    assert sum("not measured" in line for line in lines) == 3 * len(table.WANTED) - 1 - 1  # diffusers does not train Anima
    (line,) = [line for line in lines if "| kohya |" in line and "not measured" not in line]
    assert line.startswith("| SD 1.5, 128 px, batch 1, rank 8, fp32, cpu | kohya | 0.500 | 2.000 |") and "0.31" in line
    assert "a machine" in lines[-1]


def test_one_command_asks_for_every_row_that_the_table_wants_of_a_gpu() -> None:
    rows = fill.wanted(steps=9)
    assert len({row.name for row in rows}) == len(rows)
    asked = set()
    for row in rows:
        options = dict(zip(row.options, row.options[1:], strict=False))
        if row.trainer in table.TRAINERS and "--label" not in options:
            model, pixels, batch = options.get("--model", "sd1"), int(options["--resolution"]), int(options.get("--batch", "1"))
            shape = (model, pixels, batch, int(options["--rank"]), options["--precision"], "cuda", "--checkpointing" in row.options)
            asked.add((shape, row.trainer))
    best = (("sd1", 512, 32, 16, "bf16", "cuda", False), "ours")
    assert asked - {best} == {(shape, trainer) for shape in table.WANTED if shape[5] == "cuda" for trainer in table.TRAINERS}
    assert best in asked


@pytest.mark.seconds
def test_a_row_that_fails_or_takes_too_long_gives_the_reason(tmp_path: Path) -> None:
    assert fill.measure([sys.executable, "-c", "pass"], tmp_path / "log", 60) == "ok"
    failing = [sys.executable, "-c", "raise SystemExit('no such checkout')"]
    assert fill.measure(failing, tmp_path / "log", 60) == f"failed: no such checkout (see {tmp_path / 'log'})"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPER!r}, {str(tmp_path / 'pid')!r}])"
    assert fill.measure([sys.executable, "-c", child], tmp_path / "log", 5).startswith("stopped after")
    started = int((tmp_path / "pid").read_text())
    assert started not in [each.process.pid for each in living()]


@pytest.mark.seconds
def test_the_count_grows_with_pixels_and_is_more_than_twice_the_forward_pass_s(tmp_path: Path) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from trainer.families import family_of, open_checkpoint

    path = make_checkpoint(tmp_path / "tiny.safetensors", "tiny")
    small, large = (limits.step_flop(path, resolution=side, rank=4) for side in (64, 128))
    assert 3.5 < large / small < 4.5
    checkpoint = open_checkpoint(str(path))
    unet: Any = family_of(checkpoint).load_denoiser(checkpoint, torch.float32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(torch.zeros(1, 4, 16, 16), torch.zeros(1, dtype=torch.int64), torch.zeros(1, 77, 64))
    forward = counter.get_total_flops()
    # backward goes through every frozen layer once, and twice through LoRA and attention
    assert 1.8 * forward < large < 3 * forward


def test_a_square_product_runs_at_some_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SIDES", {"cpu": 64})
    monkeypatch.setattr(limits, "SECONDS", 0.02)
    assert limits.matmul_rate("cpu", "fp32") > 1e6


@pytest.mark.parametrize("ending", ["", "import os; os._exit(0)"])
@pytest.mark.seconds
def test_steps_of_any_script_are_timed_however_it_ends(tmp_path: Path, ending: str) -> None:
    script, out = tmp_path / "train.py", tmp_path / "out.json"
    script.write_text(
        "import sys, time, torch\n"
        "assert sys.argv[1:] == ['--steps', '4'] and __name__ == '__main__'\n"
        "optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])\n"
        "for _ in range(int(sys.argv[2])):\n    time.sleep(0.02)\n    optimizer.step()\n"
        f"{ending}\n",
        encoding="utf-8",
    )
    command = [sys.executable, str(ROOT / "benchmarks" / "timed.py"), str(out), str(script), "--steps", "4"]
    subprocess.run(command, check=True, timeout=120)
    found = json.loads(out.read_text(encoding="utf-8"))
    assert len(found["between_steps"]) == 3 and min(found["between_steps"]) >= 0.02
    assert found["first_step"] > found["began"] and found["rss_gb"] > 0.01


def test_events_of_a_run_become_seconds() -> None:
    seen = growth.Seen(began=100.0)
    for second, done in ((101.0, 0), (103.0, 8)):
        seen.on_event(events.Phase(phase="caching latents", done=done, total=8, time=second))
    for number in range(12):
        wait = 3.0 if number < 6 else 0.5  # the warm-up does not count
        seen.on_event(events.Step(**_STEP | {"time": (seen.steps[-1] if seen.steps else 107.0) + wait}))
    assert (seen.caching, seen.start, seen.step) == (0.25, 10.0, 0.5)


def test_a_start_is_split_by_the_events_of_the_child() -> None:
    log: list[events.Event] = [events.Phase(name, time=moment) for name, moment in (("loading", 101.0), ("loading", 103.5))]
    log[1:1] = [events.Phase("caching prompts", time=103.0)]
    log += [events.Phase("training", 0, 1, time=105.5), events.Step(**_STEP | {"time": 109.5}), events.Step(**_STEP | {"time": 110.0})]
    assert start.split(99.5, 100.0, log) == [0.5, 1.0, 2.5, 2.0, 4.0]


@pytest.mark.long
def test_the_parts_of_a_start_are_printed(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start.main([str(tiny_checkpoint), str(growth.make_dataset(tmp_path, 2)), "--device", "cpu", "--precision", "fp32", "--times", "1"])
    heads, _, one, median = (line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines())
    assert heads == ["start", "prepare", "imports", "plan", "load", "step", "all"]
    assert (one[0], median[0]) == ("1", "median") and one[1:] == median[1:]
    *parts, whole = map(float, one[1:])
    assert min(parts) >= 0 and whole > 0, "a part of less than 0.05 s is printed as 0.0"
    assert sum(map(float, one[1:-1])) == pytest.approx(float(one[-1]), abs=0.25)


@pytest.mark.long
def test_growth_prints_a_row_for_each_number_of_images(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["growth.py", "--images", "3", "--processes", "1", "--steps", "8"])
    growth.main()
    printed = capsys.readouterr().out
    (pictures,) = (line for line in printed.splitlines() if line.startswith("| 3 |"))
    cells = [float(cell) for cell in pictures.strip("| ").split(" | ")]
    assert len(cells) == 6 and all(cell > 0 for cell in cells[2:])
    assert printed.splitlines()[-1].endswith("| 1.00 |")


@pytest.mark.skipif(bool(sys.flags.isolated), reason="a portable Python does not look into PYTHONPATH")
@pytest.mark.seconds
def test_an_import_is_counted_apart_from_what_comes_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second"):
        (tmp_path / f"counted_{name}.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    before, own = imports.measure("import counted_first, counted_second")
    assert before.modules > 500 and before.files > 500 and before.seconds > 0 and own.seconds > 0
    assert own.modules == 2 and own.files >= 2
    imports.print_row("lean", [own._replace(seconds=second) for second in (0.5, 9.0, 2.25)])
    assert capsys.readouterr().out == f"| lean | 2.25 | {own.modules} | {own.files} |\n"


def test_each_second_of_the_reference_run_has_one_part() -> None:
    phases = ("caching latents", 12.0), ("caching prompts", 13.0), ("loading", 13.5), ("sampling", 14.0)
    log: list[events.Event] = [events.Phase(name, time=moment) for name, moment in phases]
    log += [events.Sample("a.png", "", 0, 0, 0, time=16.0), events.Phase("training", time=17.0)]
    log += [events.Step(**_STEP | {"time": 20.0}), events.Checkpoint(1, "", "", time=20.25), events.Step(**_STEP | {"time": 22.0})]
    log += [events.Phase("exporting", time=22.5), events.Done("", "", 2, 1.0, 1.0, time=23.0)]
    expected = {"prepare": 4.0, "start": 1.5, "caching": 3.0, "training": 4.75, "validation": 2.5, "saving": 1.25}
    assert reference.split(6.0, 10.0, log) == expected
    assert sum(expected.values()) == 23.0 - 6.0


def test_the_reference_run_is_the_pack_s_defaults_on_drawn_faces(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[RunConfig] = []

    def train(run: PreparedRun, *, on_event: Callable[[events.Event], None]) -> None:
        asked.append(run.config)
        on_event(events.Plan(3, {}, 5, 8, 2, 1, 1, "sd1", "cpu", "fp32", 1.0))
        on_event(events.Step(**_STEP | {"time": time.time() + 2.0}))

    monkeypatch.setattr(launcher, "train", train)
    reference.main(["--images", "3", "--pixels", "64", "--checkpoint", str(tiny_checkpoint), "--folder", str(tmp_path)])
    (given,) = asked
    assert (given.network.rank, given.optimizer.lr, given.training.epochs) == (16, 1e-4, 5)
    assert (given.training.batch_size, given.training.gradient_accumulation, given.training.checkpoint_every) == (1, 2, 500)
    assert given.sample.prompts == ("myAnimeStyleToken anime_face girl, high quality",) and given.sample.every_epochs == 1
    assert Path(given.dataset.path).name == "myAnimeStyleToken_anime_face"
    assert {path.name for path in tmp_path.iterdir()} == {"faces-3"} and len(list((tmp_path / "faces-3").iterdir())) == 3
    heads, _, cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines())
    row = dict(zip(heads, cells, strict=True))
    assert (row["device"], row["images"], row["steps"]) == ("cpu, fp32", "3", "8")
    assert float(row["images a second"]) == pytest.approx(15 / float(row["training"]), abs=0.5)


def test_rounds_are_compared_one_by_one() -> None:
    """So that a round under heavy load, slow for both, counts no more than the others."""
    seconds = [(10.0, 15.0), (100.0, 130.0), (12.0, 24.0)]
    rounds = [
        {
            "ours": {"step_seconds": ours, "processor_step_seconds": 2 * ours},
            "kohya": {"step_seconds": kohya, "processor_step_seconds": ours},
        }
        for ours, kohya in seconds
    ]
    assert alternate.ratios(rounds) == {"times_as_fast": 1.5, "times_as_fast_by_cpu_seconds": 0.5}


def test_each_measurement_trains_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one folder and process: a finished run of the first measurement would be found and not be trained."""
    found = []

    def run(trainer: str, work: Work, prepared: peers.Prepared, out: Path, **_: Any) -> None:
        runs = out.with_suffix("")
        found.append(out.exists() or runs.exists())
        runs.mkdir()
        steps = [1.0] * (speed.WARM_UP + 1)
        timed = {"between_steps": steps, "busy_between_steps": steps, "first_step": 0.0, "rss_gb": 1.0, "gpu_gb": None}
        out.write_text(json.dumps({**timed, "device": "cpu", "threads": 1, "torch": ""}), encoding="utf-8")

    monkeypatch.setattr(peers, "run", run)
    for module, name in ((peers, "checkpoint"), (peers, "dataset"), (peers, "prepare")):
        monkeypatch.setattr(module, name, lambda *_: tmp_path)
    monkeypatch.setattr(speed, "counted", lambda *_: 1.0)
    monkeypatch.setattr(limits, "matmul_rate", lambda *_: 1.0)
    chosen = argparse.Namespace(trainer="ours", label="", path=None, python="", set=[])
    rows = [speed.measure(chosen, Work("sd1", 128, 1, 8, "fp32", "cpu", 5, False), tmp_path) for _ in range(2)]
    assert found == [False, False] and [row["step_seconds"] for row in rows] == [1.0, 1.0]


def test_anima_is_measured_with_the_files_of_one_folder(tmp_path: Path) -> None:
    work = Work("anima-4", 256, 1, 16, "bf16", "cpu", 5, False)
    checkpoint = peers.checkpoint_path(tmp_path, work.model)
    command = peers._kohya(work, peers.Prepared(checkpoint, tmp_path / "dataset", tmp_path), Path("sd-scripts"))
    options = dict(pairwise(command))
    assert command[0] == str(Path("sd-scripts", "anima_train_network.py"))
    assert options["--network_module"] == "networks.lora_anima" and "--cache_text_encoder_outputs" in command
    files = {options[name] for name in ("--pretrained_model_name_or_path", "--qwen3", "--vae")}
    assert files == {str(tmp_path / "random-anima-4" / name) for name in (anima.DENOISER, anima.TEXT_ENCODER, anima.VAE)}


@pytest.mark.seconds
def test_operations_of_a_transformer_are_counted(tiny_anima: Path) -> None:
    small, large = (limits.step_flop(tiny_anima, resolution=side, rank=4) for side in (64, 128))
    assert 1.5 < large / small < 4.5  # of 64 px, most is for the prompt's 512 rows
