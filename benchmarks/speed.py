"""Training speed and memory of this trainer, kohya's and diffusers' script on the same work, one command per row.

    python benchmarks/speed.py ours      --resolution 512 --batch 1 --rank 16 --precision bf16 --device cuda
    python benchmarks/speed.py kohya     --path sd-scripts --python sd-scripts/venv/bin/python  (the same options)
    python benchmarks/speed.py diffusers --path diffusers  --python that/bin/python             (the same options)
    python benchmarks/speed.py table

Each trains a LoRA on the attention and feed-forward layers of a random checkpoint of full size (192 modules for SD 1.5) from the same
pictures, and writes ``benchmarks/results/<name>.json``; ``table`` puts all of them into ``benchmarks/README.md``. Every trainer is started
by its own launcher and timed by ``timed.py``, from the same moment: before anything is read. MFU is counted arithmetic
(``limits.py``) over the rate at which the machine multiplied matrices just before the run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import limits, peers, table
from benchmarks.work import Work
from trainer.core.terminal import escape_unprintable

RESULTS = Path(__file__).resolve().with_name("results")
WARM_UP = 3  # steps that are not measured: allocation, kernel choice, first use of caches
PICTURES = 8


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("trainer", choices=[*peers.TRAINERS, "table"])
    parser.add_argument("--path", type=Path, help="checkout of the peer")
    parser.add_argument("--python", default=sys.executable, help="the Python that has the peer's requirements")
    parser.add_argument("--model", choices=peers.MODELS, default="sd1")
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="bf16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a further setting of ours")
    parser.add_argument("--label", default="", help="added to the row's name, for example the preset")
    parser.add_argument("--folder", type=Path, help="where the checkpoint and the pictures are kept; else a temporary one")
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    if chosen.trainer == "table":
        table.update(chosen.results)
        return 0
    if chosen.trainer == "diffusers" and chosen.model in peers.ANIMA_SIZES:
        parser.error("diffusers has no training script for Anima")
    if chosen.trainer != "ours" and chosen.path is None:
        parser.error(f"--path is needed: a checkout of {chosen.trainer}")
    work = Work(
        chosen.model, chosen.resolution, chosen.batch, chosen.rank, chosen.precision, chosen.device, chosen.steps, chosen.checkpointing
    )
    with tempfile.TemporaryDirectory(prefix="animelora-speed-") as temporary:
        row = measure(chosen, work, chosen.folder or Path(temporary))
    write(row, chosen.results)
    print(json.dumps(row, indent=1))
    return 0


def write(row: Mapping[str, Any], results: Path) -> None:
    """Write ``row`` to its file in ``results``."""
    work = Work(**row["work"])
    shape = f"{work.model}-{work.resolution}px-b{work.batch}-r{work.rank}-{work.precision}-{work.device}"
    shape += "-checkpointing" if work.checkpointing else ""
    results.mkdir(parents=True, exist_ok=True)
    target = results / f"{shape}-{row['trainer']}{'-' + row['label'] if row['label'] else ''}.json"
    target.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")


def measure(chosen: argparse.Namespace, work: Work, folder: Path) -> dict[str, Any]:
    """Measure one row: prepare the shared files, run one trainer, compare with the machine's limit."""
    checkpoint = peers.checkpoint(folder, work.model)
    dataset = peers.dataset(folder, work.resolution, PICTURES)
    flop = counted(checkpoint, work)
    rate = limits.matmul_rate(work.device, work.precision)
    out = folder / f"timed-{os.getpid()}.json"
    out.unlink(missing_ok=True)  # what an earlier measurement of this process left: a finished run would be found and not trained again
    shutil.rmtree(out.with_suffix(""), ignore_errors=True)
    prepared = peers.prepare(chosen.trainer, checkpoint, dataset, folder)
    started = time.time()
    peers.run(chosen.trainer, work, prepared, out, path=chosen.path, python=chosen.python, settings=chosen.set)
    seconds = time.time() - started
    timed: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    between = timed["between_steps"][WARM_UP:]
    step = statistics.median(between)
    speed = work.batch / step
    return {
        "trainer": chosen.trainer,
        "label": chosen.label,
        "work": work.__dict__,
        "images_per_second": round(speed, 4),
        "step_seconds": round(step, 5),
        "fastest_step_seconds": round(min(between), 4),
        "processor_step_seconds": round(statistics.median(timed["busy_between_steps"][WARM_UP:]), 4),
        "steps_counted": len(between),
        "first_step_seconds": round(timed["first_step"] - started, 2),
        "total_seconds": round(seconds, 2),
        "gpu_gb": timed["gpu_gb"] and round(timed["gpu_gb"], 3),
        "rss_gb": round(timed["rss_gb"], 3),
        "flop_per_image": flop,
        "matmul_flop_per_second": rate,
        "mfu": round(flop * speed / rate, 4),
        "machine": f"{timed['device']}, {platform.machine()}, {os.cpu_count()} CPUs, {timed['threads']} threads",
        "load_average": [round(value, 1) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "torch": timed["torch"],
        "python": platform.python_version(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
    }


def counted(checkpoint: Path, work: Work) -> float:
    """``limits.step_flop``, cached beside the checkpoint, since counting takes as long as a short run."""
    kept = checkpoint.with_name(f"{checkpoint.stem}-{work.resolution}px-r{work.rank}-flop.json")
    if not kept.is_file():
        kept.write_text(json.dumps(limits.step_flop(checkpoint, resolution=work.resolution, rank=work.rank)), encoding="utf-8")
    return float(json.loads(kept.read_text(encoding="utf-8")))


if __name__ == "__main__":
    escape_unprintable()
    sys.exit(main())
