"""The reference run from end to end, and where its time goes: prepare, train, validate, export.

    python benchmarks/reference.py [--images 1000] [--pixels 512] [--checkpoint FILE] [--set KEY=VALUE]

Drawn anime faces of 128 px are prepared at ``--pixels`` in ``myAnimeStyleToken_anime_face`` and trained by the launcher as ever, with the
settings that Train LoRA has when nobody changes them: rank 16, learning rate 1e-4, 5 epochs, batch 1 with gradient accumulation 2, a
checkpoint every 500 steps; a validation image before the first step and after each epoch. Without ``--checkpoint`` the base is a random
SD 1.5 of full size, made once in ``--folder``. Nothing is cached when it begins. Prints a row, in seconds:

- prepare: from pictures to a dataset;
- start: reading, importing, loading, until training begins, and whatever fits no other part;
- caching: latents and prompts, with the VAE and the text encoder that make them;
- training: the steps;
- validation: the images;
- saving: checkpoints, and the LoRA at the end;
- all of them together, and images a second while training.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import peers, table
from demo.drawing.portraits import random_portrait
from demo.drawing.render import render
from trainer.config import run_config
from trainer.config.overrides import apply_override
from trainer.config.prepare_sections import CleanSettings
from trainer.core.terminal import escape_unprintable
from trainer.dataset import PrepareSettings, prepare_dataset
from trainer.launch import launcher
from trainer.launch.prepared_run import prepare_run
from trainer.runs import events

TRIGGER, CLASS = "myAnimeStyleToken", "anime_face"
PROMPT = "myAnimeStyleToken anime_face girl, high quality"
FACE = 128  # pixels
PARTS = ("prepare", "start", "caching", "training", "validation", "saving")
_PHASES = {
    "caching latents": "caching",
    "caching prompts": "caching",
    "validating": "validation",
    "sampling": "validation",
    "exporting": "saving",
}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--checkpoint", type=Path, help="else a random one of full size")
    parser.add_argument("--folder", type=Path, help="where the random checkpoint and the pictures are kept; else a temporary one")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="another setting")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="animelora-reference-") as temporary:
        kept = chosen.folder or Path(temporary)
        checkpoint = chosen.checkpoint or peers.checkpoint(kept, "sd1")
        faces = draw(kept / f"faces-{chosen.images}", chosen.images)
        parts, told = run(checkpoint, faces, Path(temporary) / "work", chosen.pixels, chosen.overrides)
    plan = next(event for event in told if isinstance(event, events.Plan))
    memory = max(event.memory_gb for event in told if isinstance(event, events.Step))
    seen = plan.images * plan.epochs
    print(table.heading(("device", "images", "steps", *PARTS, "all", "images a second", "peak GB")))
    cells = [f"{plan.device}, {plan.precision}", str(plan.images), str(plan.steps), *(f"{parts[name]:.1f}" for name in PARTS)]
    print(table.line([*cells, f"{sum(parts.values()):.1f}", f"{seen / parts['training']:.2f}", f"{memory:.2f}"]))


def draw(folder: Path, count: int) -> Path:
    """Draw ``count`` different faces unless ``folder`` has them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = folder / f"{number:05d}.png"
        if not path.is_file():
            render(random_portrait(number), "anime", FACE).save(path)
    return folder


def run(checkpoint: Path, faces: Path, work: Path, pixels: int, overrides: list[str]) -> tuple[dict[str, float], list[events.Event]]:
    """Seconds of each of ``PARTS``, and the child's events."""
    began = time.time()
    clean = CleanSettings(near_duplicates=False)  # drawn faces are more alike than real ones
    settings = PrepareSettings(trigger=TRIGGER, class_description=CLASS, resolution=pixels, clean=clean)
    prepared = prepare_dataset(faces, work / "datasets", settings)
    data: dict[str, Any] = {
        "name": "reference",
        "base": {"checkpoint": str(checkpoint)},
        "dataset": {"path": str(prepared.dataset.path)},
        "sample": {"prompts": [PROMPT]},
        "output": {"runs": str(work / "runs")},
    }
    for override in overrides:
        apply_override(data, override, example="training.device=cpu")
    told: list[events.Event] = []
    ready = time.time()
    launcher.train(prepare_run(run_config.parse(data)), on_event=told.append)
    return split(began, ready, told), told


def split(began: float, ready: float, told: list[events.Event]) -> dict[str, float]:
    """Seconds of each of ``PARTS``. ``began`` and ``ready`` are the start and end of preparing; each event ends a part of the time."""
    parts = dict.fromkeys(PARTS, 0.0) | {"prepare": ready - began}
    for before, after in pairwise([events.Event(time=ready), *told]):
        parts[_part(after)] += after.time - before.time
    return parts


def _part(event: events.Event) -> str:
    if isinstance(event, events.Step):
        return "training"
    if isinstance(event, events.Sample | events.Validation):
        return "validation"
    if isinstance(event, events.Checkpoint | events.Done):
        return "saving"
    return _PHASES.get(event.phase, "start") if isinstance(event, events.Phase) else "start"


if __name__ == "__main__":
    escape_unprintable()
    main()
