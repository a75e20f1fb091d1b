"""All rows of the training speed table, the reference run and the rows of ``step.py``, one after the other: one command.

    python benchmarks/fill.py --kohya sd-scripts --kohya-python sd-scripts/venv/bin/python \\
        --diffusers diffusers --diffusers-python diffusers/venv/bin/python --folder /tmp/speed

The most wanted rows come first. A trainer without a checkout is left out. With ``--minutes`` no row is begun, and none goes on, after that
time. A row that fails says why and does not stop the others. What each printed is kept in ``--logs``; the last line names the rows that are
still open.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import peers, table
from trainer.core.terminal import escape_unprintable

BENCHMARKS = Path(__file__).resolve().parent
PEERS = tuple(trainer for trainer in table.TRAINERS if trainer != "ours")


class Row(NamedTuple):
    """One command: its name, the trainer (or the script ``step`` or ``reference``) and its options."""

    name: str
    trainer: str
    options: tuple[str, ...]


def wanted(steps: int) -> list[Row]:
    """All rows by importance: first those with a stated target."""
    works = {}
    for model, resolution, batch, rank, precision, device, checkpointing in table.WANTED:
        if device == "cuda":
            shape = ("--model", model, "--resolution", str(resolution), "--batch", str(batch), "--rank", str(rank))
            options = (*shape, "--precision", precision, "--steps", str(steps), *(["--checkpointing"] if checkpointing else []))
            works[f"{model}-b{batch}{'-checkpointing' if checkpointing else ''}"] = options
    by_trainer = {trainer: [Row(f"{trainer}-{work}", trainer, works[work]) for work in works] for trainer in table.TRAINERS}
    rows = [row for pair in zip(by_trainer["ours"], by_trainer["kohya"], strict=True) for row in pair]
    single, eight, xl = works["sd1-b1"], works["sd1-b8"], works["sdxl-b1-checkpointing"]
    rows += [
        Row("reference", "reference", ()),
        Row("ours-sd1-b32", "ours", (*eight, "--batch", "32")),  # the later row counts
        Row("ours-sd1-b8-compiled", "ours", (*eight, "--set", "training.compile=true", "--label", "compiled")),
        Row("ours-sdxl-8gb", "ours", (*xl, "--set", "training.memory=8gb", "--label", "8gb-preset")),
        Row("ours-sdxl-fast", "ours", (*(option for option in xl if option != "--checkpointing"), "--label", "fast")),
        Row("ours-sd1-b1-plain", "ours", (*single, "--set", "training.cuda_graphs=off", "--label", "no-graphs")),
        *by_trainer["diffusers"],
        # as many pictures as the reference run sees, without its validation images
        *(Row(f"{trainer}-sd1-b1-long", trainer, (*single, "--steps", "5000", "--label", "5000-steps")) for trainer in ("ours", "kohya")),
    ]
    each = (
        "training.fused=off", "training.batch_size=8,training.fused=off",
        "training.channels_last=on", "training.channels_last=off", "training.cuda_graphs=off", "training.batch_size=8",
        "training.batch_size=8,training.channels_last=off", "training.precision=fp16", "optimizer.type=adamw8bit",
        "training.base_precision=int8", "training.base_precision=fp8", "training.base_precision=nf4",
        "training.gradient_checkpointing=true", "training.batch_size=4,training.micro_batch_size=1",
    )  # fmt: skip
    return [*rows, Row("step", "step", ("--model", "full", *(part for one in each for part in ("--each", one))))]


def main() -> int:
    """The command line. The exit status is the number of rows that failed or were not started."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    for peer in PEERS:
        parser.add_argument(f"--{peer}", type=Path, metavar="CHECKOUT")
        parser.add_argument(f"--{peer}-python", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--folder", type=Path, required=True, help="where checkpoints and pictures are kept")
    parser.add_argument("--results", type=Path, default=BENCHMARKS / "results")
    parser.add_argument("--logs", type=Path, help="one text file a row; else in the folder")
    parser.add_argument("--minutes", type=float, default=600.0)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="rows to measure, in this order; else all")
    chosen = parser.parse_args()
    logs: Path = chosen.logs or chosen.folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    ends, still_open = time.monotonic() + 60 * chosen.minutes, []
    rows = [row for row in wanted(chosen.steps) if row.trainer not in PEERS or getattr(chosen, row.trainer) is not None]
    if chosen.only:
        by_name = {row.name: row for row in rows}
        if unknown := [name for name in chosen.only if name not in by_name]:
            parser.error(f"no row is called {unknown[0]!r}; there are {', '.join(by_name)}")
        rows = [by_name[name] for name in chosen.only]
    for row in rows:
        left, began = ends - time.monotonic(), time.monotonic()
        outcome = measure(command(row, chosen), logs / f"{row.name}.log", left) if left > 0 else "no time left"
        print(f"{row.name:<22} {time.monotonic() - began:5.0f} s  {outcome}", flush=True)
        if outcome != "ok":
            still_open.append(row.name)
    print(f"still open: {', '.join(still_open) or 'none'}; 'python benchmarks/speed.py table' puts the results into README.md")
    return len(still_open)


def command(row: Row, chosen: argparse.Namespace) -> list[str]:
    """The command that measures a row."""
    if row.trainer == "reference":
        return [sys.executable, str(BENCHMARKS / "reference.py"), *row.options, "--folder", str(chosen.folder)]
    if row.trainer == "step":
        made = peers.checkpoint_path(chosen.folder, "sd1")  # written by earlier rows
        checkpoint = ["--checkpoint", str(made)] if made.is_file() else []
        return [sys.executable, str(BENCHMARKS / "step.py"), *row.options, "--work", str(chosen.folder), *checkpoint]
    peer: list[str] = []
    if row.trainer in PEERS:
        peer = ["--path", str(getattr(chosen, row.trainer)), "--python", getattr(chosen, f"{row.trainer}_python")]
    shared = ["--folder", str(chosen.folder), "--results", str(chosen.results)]
    return [sys.executable, str(BENCHMARKS / "speed.py"), row.trainer, *row.options, *peer, *shared]


def measure(parts: list[str], log: Path, seconds: float) -> str:
    """Run a command with a time limit and its output in ``log``; returns "ok" or the reason for failure."""
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(parts, stdout=file, stderr=subprocess.STDOUT)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"stopped after {seconds:.0f} s"
        finally:
            _end(process)
    if status == 0:
        return "ok"
    lines = log.read_text(encoding="utf-8").strip().splitlines()
    return f"failed: {lines[-1][:160] if lines else 'no output'} (see {log})"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and its children, since a killed launcher leaves its trainer running."""
    if process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True)
        for one in [*children, process]:
            one.kill()
        process.wait()
        psutil.wait_procs(children, timeout=30)


if __name__ == "__main__":
    escape_unprintable()
    sys.exit(main())
