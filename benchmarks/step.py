"""Time and memory of training steps with any settings, on random images and a random or given checkpoint.

    python benchmarks/step.py --model full --pixels 512 --steps 30 --set training.compile=true --set training.memory=8gb
    python benchmarks/step.py --model full --each training.channels_last=off --each training.compile=true,training.batch_size=8

``--each`` measures the settings behind it one after the other in the same process, each in addition to those of ``--set``.
The steps are the trainer's own, from the caches on, in this process. Prints one line of JSON: settings, device, estimate, seconds a step
(median after warm-up), images a second, seconds to the first step, peak memory (of the GPU's allocator, or resident on a CPU), first loss
and gradient norm. ``--model``: full (SD 1.5), full-sdxl, or tiny ones, made once in ``--work``; ``--checkpoint`` names a real one.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from random_checkpoints.layout import SIZES
from random_checkpoints.make_checkpoint import make_checkpoint
from trainer.config import run_config
from trainer.config.overrides import apply_override
from trainer.core import devices
from trainer.core.terminal import escape_unprintable
from trainer.dataset import PrepareSettings, prepare_dataset
from trainer.launch.prepared_run import prepare_run
from trainer.training.distributed import make_accelerator
from trainer.training.event_writer import EventLog
from trainer.training.recipe import TrainingRecipe
from trainer.training.requests import Requests


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", choices=sorted(SIZES), default="full")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "animelora-benchmarks")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--each", action="append", default=[], metavar="KEY=VALUE[,KEY=VALUE]", help="a further row with these as well")
    arguments = parser.parse_args()
    checkpoint = arguments.checkpoint or arguments.work / f"random-{arguments.model}.safetensors"
    if arguments.checkpoint is None and not checkpoint.is_file():
        make_checkpoint(checkpoint, arguments.model)
    common, failed = arguments.overrides, False
    for more in arguments.each or [""]:
        arguments.overrides = [*common, *more.split(",")] if more else common
        try:
            with tempfile.TemporaryDirectory() as folder:
                row = measure(checkpoint, Path(folder), arguments)
        except Exception as error:  # the other rows can still be measured
            if not arguments.each:
                raise
            row, failed = {"set": arguments.overrides, "error": f"{type(error).__name__}: {error}"}, True
        print(json.dumps(row), flush=True)
        _free()
    if failed:
        raise SystemExit(1)


def measure(checkpoint: Path, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The measurements for one set of settings."""
    steps = arguments.warm_up + arguments.steps
    data: dict[str, Any] = {
        "base": {"checkpoint": str(checkpoint)},
        "dataset": {"path": "-"},
        "training": {"gradient_accumulation": 1, "max_steps": steps, "epochs": steps},
        "sample": {"every_epochs": 0},
        "output": {"runs": str(folder / "runs"), "tensorboard": False},
    }
    for override in arguments.overrides:
        apply_override(data, override, example="training.batch_size=2")
    data["dataset"]["path"] = str(_pictures(folder, arguments.pixels, run_config.parse(data).training.batch_size))
    settings = run_config.parse(data)
    run = prepare_run(settings).folder
    recipe = TrainingRecipe(run, settings, EventLog(run.events), Requests())
    device = recipe.hardware.device
    recipe.accelerator = make_accelerator(device, recipe.hardware.precision)
    recipe.fill_caches()
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    began = time.monotonic()
    recipe.load()
    recipe.open_outputs()
    seconds, first, to_first, images = [], (0.0, 0.0), 0.0, 0
    clock = time.monotonic()
    for number, batch in enumerate(recipe.batch_loader.steps(0, recipe.model.noise_process, recipe.model.tokenize)):
        metrics = recipe.compute_gradients(batch)
        recipe.update_weights(batch, metrics)
        loss = float(metrics.loss)  # waits for the device: the time of a whole step
        if number == 0:
            first, to_first = (loss, float(metrics.grad_norm)), time.monotonic() - began
        images = batch.images
        seconds.append(time.monotonic() - clock)
        clock = time.monotonic()
    median = statistics.median(seconds[arguments.warm_up :])
    return {
        "model": arguments.model if arguments.checkpoint is None else checkpoint.name,
        "pixels": arguments.pixels,
        "set": arguments.overrides,
        "device": _device_name(device),
        "precision": recipe.hardware.precision,
        "attention": recipe.plan.attention,
        "estimate_gb": recipe.plan.memory_gb,
        "peak_gb": round(devices.peak_memory_gb(device), 2),
        "seconds_a_step": round(median, 4),
        "images_a_second": round(images / median, 3),
        "seconds_to_first_step": round(to_first, 1),
        "first_loss": first[0],
        "first_gradient_norm": first[1],
    }


def _free() -> None:
    """Free what one row compiled and allocated before the next one."""
    import torch

    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _pictures(folder: Path, pixels: int, count: int) -> Path:
    """A prepared dataset of ``count`` random images."""
    source, random = folder / "pictures", np.random.default_rng(0)
    source.mkdir(parents=True)
    for index in range(count):
        small = Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        small.resize((pixels, pixels), Image.Resampling.BICUBIC).save(source / f"{index:02d}.png")
    chosen = PrepareSettings(trigger="bench", class_description="picture", resolution=pixels)
    return prepare_dataset(source, folder / "datasets", chosen).dataset.path


def _device_name(device: Any) -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    escape_unprintable()
    main()
