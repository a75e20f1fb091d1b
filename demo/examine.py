"""Measures a LoRA of the demonstration on other portraits or with other sampling settings.

python -m demo.examine results/anime_demo.safetensors --first 700 --tests 20
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from .base_path import BASE_FILE
from .run_demo import DemoSettings, measure, paint, text_portraits, trained_on


def main(arguments: list[str] | None = None) -> int:
    """Print the figures of ``figures.json``, except time and steps of the training."""
    parser = argparse.ArgumentParser(prog="python -m demo.examine", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("lora", type=Path, help="the LoRA file that the demonstration wrote")
    parser.add_argument("--base", type=Path, default=BASE_FILE)
    parser.add_argument("--first", type=int, default=DemoSettings.first, help="number of the first portrait")
    parser.add_argument("--tests", type=int, default=DemoSettings.tests, help="how many portraits")
    parser.add_argument("--negative", default=DemoSettings.negative, help="negative prompt of img2img")
    parser.add_argument("--guidance", type=float, default=DemoSettings.guidance, help="guidance scale of img2img")
    parser.add_argument("--sampling-steps", type=int, default=DemoSettings.sampling_steps, help="sampling steps of each image")
    chosen = parser.parse_args(arguments)
    names = ("first", "tests", "negative", "guidance", "sampling_steps")
    settings = replace(DemoSettings(), **{name: getattr(chosen, name) for name in names})
    measured, trained = {*range(chosen.first, chosen.first + chosen.tests), *text_portraits(settings)}, trained_on(settings)
    if both := sorted(measured & trained):
        parser.error(f"the LoRA was trained on portrait {both[0]}; choose others, for example --first {max(trained) + 1}")
    from trainer.commands.image_generator import LoraUse, load_generator
    from trainer.families import open_checkpoint

    painted = paint(load_generator(open_checkpoint(str(chosen.base)), device="cpu"), LoraUse(chosen.lora), settings)
    print(json.dumps(measure(painted.cases) | painted.moved(), indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
