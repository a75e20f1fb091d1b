"""A table of the estimated memory of each memory preset: ``python benchmarks/memory.py``. Needs neither a GPU nor a checkpoint.

The estimate is the trainer's own (``trainer/plan/memory_estimate.py``), for a LoRA of rank 16 in bf16 with a batch of 4, on the
shapes of the real models.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import table
from random_checkpoints.anima import make_empty_anima
from random_checkpoints.lumina2 import make_empty_lumina2
from random_checkpoints.make_checkpoint import make_empty_checkpoint
from trainer.config import memory_presets, run_config
from trainer.core.terminal import escape_unprintable
from trainer.families import family_of, open_checkpoint
from trainer.plan.meta_models import memory_of

MODELS = (
    ("SD 1.5, 512 px", "full", 512),
    ("SDXL, 1024 px", "full-sdxl", 1024),
    ("Anima, 1024 px", "anima", 1024),
    ("Lumina 2, 1024 px", "lumina2", 1024),
)
PARTS = ("base", "lora", "optimizer", "activations", "overhead")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--fused", action="store_true", help="with fused blocks, as on a GPU with Triton")
    arguments = parser.parse_args()
    print(table.heading(("Model", "`training.memory`", *PARTS, "GB in all", "what it fills in")))
    with tempfile.TemporaryDirectory() as folder:
        for title, size, pixels in MODELS:
            header = _header(Path(folder) / size, size)
            for preset in ("none", *memory_presets.SIZES):
                print(row(title, header, pixels, preset, arguments.batch, arguments.fused), flush=True)


def _header(path: Path, size: str) -> str:
    """The path of a checkpoint without content."""
    if size == "anima":
        return str(make_empty_anima(path))
    file = path.with_suffix(".safetensors")
    return str(make_empty_lumina2(file) if size == "lumina2" else make_empty_checkpoint(file, size))


def row(title: str, header: str, pixels: int, preset: str, batch: int, fused: bool) -> str:
    """One line of the table."""
    import torch

    checkpoint = open_checkpoint(header)
    family = family_of(checkpoint)
    data: dict[str, Any] = {"base": {"checkpoint": header}, "dataset": {"path": "-"}, "training": {"batch_size": batch, "memory": preset}}
    settings = run_config.parse(data)
    filled: dict[str, Any] = {}
    if preset != "none":
        filled = memory_presets.preset(preset, family.preset_group)
        settings = memory_presets.with_preset(settings, preset, family.preset_group)
    needed = memory_of(settings, family, checkpoint, (pixels, pixels), torch.bfloat16, fused=fused)
    words = ", ".join(f"`{key.split('.')[1]} = {str(value).lower()}`" for key, value in filled.items() if value is not False)
    cells = [f"{needed[part]:.2f}" for part in PARTS]
    return table.line([title, f"`{preset}`", *cells, f"{sum(needed.values()):.1f}", words or "–"])


if __name__ == "__main__":
    escape_unprintable()
    main()
