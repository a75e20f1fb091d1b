"""Speed and memory of dataset preparation, compared with a bare Pillow loop, the limit for decoding, resizing and encoding.

    python benchmarks/prepare.py [--images 10000] [--rows 100000]

Prints, from one run on one machine:

- images per second and core of ``prepare_dataset`` (hashing, checks, perceptual hash, crop, PNG, captions, journal, manifest) and of a loop
  that only decodes, resizes and encodes the same files with the same PNG level, on all cores, in turns so that both see the same noise;
- the same by processor time, which other work on the machine does not disturb;
- peak memory in each tenth of a run over many pictures (small ones, so that it ends: memory grows by the picture, if at all);
- a second run over them that finds one new picture;
- opening a dataset of 100,000 captions and manifest rows.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image, ImageFilter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trainer.config.prepare_sections import CleanSettings, TrainingHints
from trainer.core.devices import cores
from trainer.core.terminal import escape_unprintable
from trainer.dataset import PrepareSettings, open_dataset, prepare_dataset
from trainer.dataset.images.process import PNG_LEVEL
from trainer.dataset.manifest.hashing import hashed_header
from trainer.dataset.manifest.items import Item, Row
from trainer.dataset.manifest.write import write_manifest

RESOLUTION = 512
# copies of an image differ only in a byte after its end, so near duplicates must be kept; their hashes are still computed
SETTINGS = PrepareSettings(trigger="bench", resolution=RESOLUTION, clean=CleanSettings(near_duplicates=False))


def make_pictures(folder: Path, count: int, sides: tuple[int, int] = (768, 1280), distinct: int = 64) -> list[Path]:
    """JPEG images with flat areas, edges and a little grain, like drawings."""
    folder.mkdir(parents=True)
    rng = random.Random(1)
    bases = []
    for seed in range(distinct):
        noise = np.random.default_rng(seed)
        size = (rng.randrange(sides[0], sides[1] + 1, 64), rng.randrange(sides[0], sides[1] + 1, 64))
        small = Image.fromarray(noise.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize(size, Image.Resampling.NEAREST)
        soft = np.asarray(small.filter(ImageFilter.GaussianBlur(3)), dtype=np.int16)
        grain = noise.integers(-2, 3, soft.shape, dtype=np.int16)
        buffer = io.BytesIO()
        Image.fromarray(np.clip(soft + grain, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=92)
        bases.append(buffer.getvalue())
    paths = []
    for number in range(count):
        path = folder / f"{number:06d}.jpg"
        path.write_bytes(bases[number % distinct] + number.to_bytes(4, "little"))
        path.with_suffix(".txt").write_text(f"1girl, tag {number % 50}, solo", encoding="utf-8")
        paths.append(path)
    return paths


def bare(paths: list[Path]) -> float:
    """Decode, resize and encode. Returns this process's CPU seconds."""
    started = time.process_time()
    for path in paths:
        with Image.open(path) as image:  # noqa: TID251 - Pillow alone, on files made above
            rgb = image.convert("RGB")
        side = min(rgb.size)
        left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
        small = rgb.resize((RESOLUTION, RESOLUTION), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
        small.save(io.BytesIO(), "PNG", compress_level=PNG_LEVEL)
    return time.process_time() - started


def compare(folder: Path, paths: list[Path], rounds: int = 4) -> dict[str, Any]:
    """Both ways alternately on the same images."""
    wall = {"bare": 0.0, "prepare": 0.0}
    cpu = {"bare": 0.0, "prepare": 0.0}
    size = len(paths) // rounds
    with multiprocessing.get_context("spawn").Pool(cores()) as pool:
        pool.map(bare, [paths[:1]] * cores())  # start the processes
        for number in range(rounds):
            part = paths[number * size : (number + 1) * size]
            started = time.perf_counter()
            cpu["bare"] += sum(pool.map(bare, [part[i :: cores()] for i in range(cores())]))
            wall["bare"] += time.perf_counter() - started
            source = folder / f"part{number}"
            source.mkdir()
            for path in part:
                for file in (path, path.with_suffix(".txt")):
                    os.link(file, source / file.name)
            started, used = time.perf_counter(), time.process_time()
            result = prepare_dataset(source, folder / f"out{number}", SETTINGS)
            wall["prepare"] += time.perf_counter() - started
            cpu["prepare"] += time.process_time() - used
            assert result.kept + len(result.rejected) == len(part), result.report.text()
    done = size * rounds
    return {
        "cores": cores(),
        "images": done,
        "images_per_second_and_core": {name: round(done / seconds / cores(), 2) for name, seconds in wall.items()},
        "images_per_processor_second": {name: round(done / seconds, 2) for name, seconds in cpu.items()},
        "share_of_the_limit_by_wall_clock": round(wall["bare"] / wall["prepare"], 3),
        "share_of_the_limit_by_processor_time": round(cpu["bare"] / cpu["prepare"], 3),
    }


def memory_over(source: Path, out: Path, count: int) -> dict[str, Any]:
    """Resident memory while ``count`` images are prepared, and the work of a second run with one more image."""
    process = psutil.Process()
    seen: list[tuple[int, int]] = []
    position = [0]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.1):
            seen.append((position[0], process.memory_info().rss))

    thread = threading.Thread(target=watch)
    thread.start()
    started = time.perf_counter()

    def progress(done: int, total: int, text: str) -> None:
        position[0] = done if text.endswith(".jpg") else position[0]

    settings = SETTINGS.model_copy(update={"resolution": 128})
    first = prepare_dataset(source, out, settings, progress=progress)
    seconds = time.perf_counter() - started
    stop.set()
    thread.join()
    tenths = [max((rss for done, rss in seen if count * i // 10 <= done < count * (i + 1) // 10), default=0) >> 20 for i in range(10)]
    Image.effect_mandelbrot((900, 900), (-2, -1.5, 1, 1.5), 60).convert("RGB").save(source / "one more.png")
    started = time.perf_counter()
    second = prepare_dataset(source, out, settings)
    return {
        "images": count,
        "kept": first.kept,
        "seconds": round(seconds, 1),
        "images_per_second": round(count / seconds, 1),
        "peak_mb_by_tenth_of_the_run": tenths,
        "second_run_with_one_more": {"made": second.kept - second.reused, "seconds": round(time.perf_counter() - started, 1)},
    }


def open_many(folder: Path, count: int) -> dict[str, Any]:
    """Open ``count`` rows with as many caption files."""
    folder.mkdir()
    rows = []
    for i in range(count):
        item = Item(f"{i}-0123456789.png", f"{i:064x}", f"bench, 1girl, tag {i % 500}, long hair, smile", 512, 512, (900, 900), (0, 0))
        (folder / item.file).touch()
        (folder / f"{i}-0123456789.txt").write_text(item.caption + "\n", encoding="utf-8")
        rows.append(Row(item, source=f"{i}.jpg", source_sha256=f"{i:064x}", steps=("crop centre",)))
    write_manifest(folder, {"name": "many", "settings": {}, **hashed_header("bench", "", 512, TrainingHints())}, rows)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        opened = open_dataset(folder)
        times.append(round(time.perf_counter() - started, 2))
        assert len(opened.items) == count
    return {"rows": count, "seconds": times}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--compare", type=int, default=400, help="images of the comparison with the bare loop")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where to work (a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        paths = make_pictures(folder / "few", args.compare)
        print(json.dumps({"compare": compare(folder, paths)}), flush=True)
        if args.rows:
            print(json.dumps({"open": open_many(folder / "rows", args.rows)}), flush=True)
        if args.images:
            make_pictures(folder / "many", args.images, (128, 256))
            print(json.dumps({"memory": memory_over(folder / "many", folder / "out", args.images)}), flush=True)


if __name__ == "__main__":
    escape_unprintable()
    main()
