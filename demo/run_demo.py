"""The demonstration: 60 drawn portraits become a dataset and a LoRA, which turns unseen photos into anime images.

Everything is processed as a user's own images are: the dataset by ``trainer.dataset.preparation.prepare``, the
training by ``trainer.launch.launcher.train`` and its child process, the images with the LoRA *file*.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base_path import BASE_FILE
from .case import Case
from .drawing.portraits import STYLE_WORDS, Portrait, caption, portrait_tags, random_portrait
from .drawing.render import render
from .measure import colour_errors, distance, raw_distance, style_distance

if TYPE_CHECKING:
    from PIL import Image

    from trainer.commands.image_generator import ImageGenerator

Progress = Callable[[str], None]

TRIGGER, CLASS = "myAnimeStyleToken", "anime face"
SIZE = 256
FIRST_TEST_SEED = 500
"""First seed of the portraits that measure the result; the training images have seeds from 0."""
FIRST_OTHER_SEED = 300
"""First seed of the regularisation images, which are in the base's styles."""
STRENGTHS = (0.65, 0.8)
NOISE_SEED = 7


@dataclass(frozen=True)
class DemoSettings:
    """Sizes and settings of a demonstration."""

    pictures: int = 60
    others: int = 20
    tests: int = 12
    first: int = FIRST_TEST_SEED
    shown: int = 6
    steps: int = 420
    batch: int = 8
    rank: int = 32
    targets: str = "all-linear+conv"
    lr: float = 2.2e-3
    sampling_steps: int = 30
    guidance: float = 1.3
    negative: str = STYLE_WORDS["photo"]
    """The negative prompt of img2img: the words for the source's style in the base's captions."""
    text_guidance: float = 1.5


QUICK = DemoSettings(pictures=60, tests=4, shown=4, steps=110, sampling_steps=12)


@dataclass(frozen=True)
class Painted:
    """All images. ``text`` holds pairs of base and LoRA for the same prompt, first those with the trigger phrase, then those without."""

    cases: list[Case]
    text: list[tuple[Image.Image, Image.Image]]

    def moved(self) -> dict[str, float]:
        """How far the LoRA changes text-to-image results, with and without its trigger phrase."""
        far = [raw_distance(base, lora) for base, lora in self.text]
        half = len(far) // 2
        return {"moved_with_trigger": round(sum(far[:half]) / half, 4), "moved_without_trigger": round(sum(far[half:]) / half, 4)}


def dataset_source(count: int) -> list[Any]:
    """``count`` anime portraits with captions that describe everything but the style."""
    from trainer.core.work.progress import track
    from trainer.dataset import SourceImage

    return [
        SourceImage(render(portrait, "anime", SIZE), f"portrait-{portrait.seed:03d}", caption(portrait, None))
        for portrait in map(random_portrait, track(range(count), "drawing portraits", count))
    ]


def other_styles(count: int) -> list[Any]:
    """Portraits in the base's own styles with its own captions. Trained without the trigger phrase, they preserve those styles."""
    from trainer.core.work.progress import track
    from trainer.dataset import SourceImage

    made = []
    for i in track(range(count), "drawing portraits in other styles", count):
        portrait, style = random_portrait(FIRST_OTHER_SEED + i), ("photo", "photo", "flat", "pencil")[i % 4]
        made.append(SourceImage(render(portrait, style, SIZE), f"{style}-{portrait.seed:03d}", caption(portrait, style)))
    return made


def trained_on(settings: DemoSettings) -> set[int]:
    """The seeds of the portraits that the LoRA is trained on."""
    return {*range(settings.pictures), *range(FIRST_OTHER_SEED, FIRST_OTHER_SEED + settings.others)}


def text_portraits(settings: DemoSettings) -> range:
    """The seeds of the portraits that are generated from text alone."""
    first = settings.first + 100
    return range(first, first + max(2, settings.tests // 3))


def prompt_for(portrait: Portrait) -> str:
    """The trigger phrase and the portrait's tags, as in the training captions."""
    return ", ".join([f"{TRIGGER} {CLASS}", *portrait_tags(portrait)])


def main(out: Path, settings: DemoSettings | None = None, *, progress: Progress | None = None) -> dict[str, Any]:
    """Run the demonstration and write its files to ``out``; returns what ``figures.json`` holds.

    Raises ``trainer.core.errors.UserError`` if the base file is missing or the training fails.
    """
    from trainer.core.errors import UserError
    from trainer.core.files.writing import write_atomic

    if not BASE_FILE.exists():
        raise UserError(
            f"The demo's base model {BASE_FILE} is missing.", "Get it with the repository, or train it: python -m demo.recipe --help"
        )
    settings = settings or DemoSettings()
    tell = progress or (lambda line: None)
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    lora, curve, steps, seconds = train_lora(out, settings, tell)
    shutil.copyfile(curve, out / "loss_curve.png")
    from trainer.commands.image_generator import LoraUse, load_generator
    from trainer.families import open_checkpoint

    tell("painting portraits that were never trained on")
    generator = load_generator(open_checkpoint(str(BASE_FILE)), device="cpu")
    painted = paint(generator, LoraUse(lora), settings)
    figures = measure(painted.cases) | painted.moved()
    figures |= {"training_seconds": round(seconds, 1), "training_steps": steps, "demo_seconds": round(time.monotonic() - started, 1)}
    figures["meaning"] = MEANING
    figures["settings"] = settings.__dict__
    from .show import picture_grid

    picture_grid(painted.cases[: settings.shown], figures).save(out / "grid.png")
    write_atomic(out / "figures.json", json.dumps(figures, indent=2) + "\n")
    return figures


def train_lora(out: Path, settings: DemoSettings, tell: Progress) -> tuple[Path, Path, int, float]:
    """Prepare the dataset and train on it; returns the LoRA file, the loss curve, the steps and the child's seconds."""
    from trainer.config.prepare_sections import CleanSettings
    from trainer.config.run_config import parse
    from trainer.core.work.progress import report_progress
    from trainer.dataset import PrepareSettings, TrainingHints, prepare_dataset
    from trainer.launch.launcher import train
    from trainer.launch.prepared_run import prepare_run

    tell(f"drawing {settings.pictures} anime portraits")
    prepared = prepare_dataset(
        dataset_source(settings.pictures),
        out / "datasets",
        PrepareSettings(
            trigger=TRIGGER,
            class_description=CLASS,
            resolution=SIZE,
            clean=CleanSettings(near_duplicates=False),  # drawn portraits are alike by design
            training=TrainingHints(shuffle_caption=True, keep_tokens=1),
        ),
        regularisation=other_styles(settings.others),
        progress=lambda done, total, _: report_progress("preparing images", done, total),
    )
    per_epoch = -(-prepared.kept // settings.batch)
    config = parse(
        {
            "name": "anime_demo",
            "base": {"checkpoint": str(BASE_FILE)},
            "dataset": {"path": str(prepared.dataset.path)},
            "network": {"rank": settings.rank, "alpha": float(settings.rank), "targets": settings.targets},
            "optimizer": {"lr": settings.lr, "schedule": "cosine", "warmup_steps": 10},
            "objective": {"debiased": True},
            "training": {
                "epochs": -(-settings.steps // per_epoch),
                "max_steps": settings.steps,
                "batch_size": settings.batch,
                "gradient_accumulation": 1,
                "device": "cpu",
                "checkpoint_every": 0,
            },
            "sample": {"every_epochs": 0},
            "output": {"runs": str(out / "runs"), "publish": str(out), "tensorboard": False},
        }
    )
    tell(f"training a LoRA: {settings.steps} steps of {settings.batch} pictures")
    shown = [0]

    def on_event(event: Any) -> None:
        if event.name == "step" and event.step >= shown[0] + 25:
            shown[0] = event.step
            tell(f"step {event.step} of {event.steps}, loss {event.loss_average:.4f}, {event.eta:.0f} s left")

    result = train(prepare_run(config), on_event=on_event)
    return result.lora, result.loss_curve, result.steps, result.seconds


def paint(generator: ImageGenerator, lora: Any, settings: DemoSettings) -> Painted:
    """Everything by the base alone, then everything with the LoRA: same prompts, same noise. Reports each image."""
    from trainer.core.work.progress import track

    portraits = [random_portrait(settings.first + i) for i in range(settings.tests)]
    others = [random_portrait(number) for number in text_portraits(settings)]
    sources = [render(p, "photo", SIZE) for p in portraits]
    options: dict[str, Any] = {"steps": settings.sampling_steps, "seed": NOISE_SEED}

    def repainted(strength: float) -> list[Image.Image]:
        pairs = zip(sources, portraits, strict=True)
        away: dict[str, Any] = {"negative": settings.negative, "guidance": settings.guidance, "strength": strength}
        images = track(pairs, f"repainting portraits ({who} at strength {strength:g})", len(sources))
        return [generator.generate_with_diffusers(prompt_for(p), image=s, **away, **options) for s, p in images]

    def from_text(prompts: list[str]) -> list[Image.Image]:
        size: dict[str, Any] = {"width": SIZE, "height": SIZE, "guidance": settings.text_guidance}
        images = track(prompts, f"painting portraits from text ({who})", len(prompts))
        return [generator.generate_with_diffusers(prompt, **size, **options) for prompt in images]

    with_trigger, without = [prompt_for(p) for p in others], [caption(p, "photo") for p in others]
    who = "the base"
    generator.apply_loras([])
    base, base_text = repainted(STRENGTHS[0]), from_text(with_trigger + without)
    who = "the LoRA"
    generator.apply_loras([lora])
    low, high, lora_text = repainted(STRENGTHS[0]), repainted(STRENGTHS[1]), from_text(with_trigger + without)
    truths = [render(p, "anime", SIZE) for p in portraits]
    cases = [Case(*row) for row in zip(portraits, sources, truths, base, low, high, strict=True)]
    return Painted(cases, list(zip(base_text, lora_text, strict=True)))


def measure(cases: list[Case]) -> dict[str, Any]:
    """Means over the portraits; see :data:`MEANING`."""

    def mean(values: list[float]) -> float:
        return round(sum(values) / len(values), 4)

    colours = [colour_errors(c.lora_065, c.truth, c.portrait) for c in cases]
    names = ("hair", "skin", "background")
    truths = [c.truth for c in cases]
    photos = style_distance([c.source for c in cases], truths)
    by_name = {n: mean([e[n] for e in colours if n in e]) for n in names if any(n in e for e in colours)}
    return {
        "distance_base": mean([distance(c.base, c.truth, c.source) for c in cases]),
        "distance_lora_065": mean([distance(c.lora_065, c.truth, c.source) for c in cases]),
        "distance_lora_080": mean([distance(c.lora_080, c.truth, c.source) for c in cases]),
        "attribute_error": mean(list(by_name.values())),
        "attribute_errors": by_name,
        "style_base": round(style_distance([c.base for c in cases], truths) / photos, 4),
        "style_065": round(style_distance([c.lora_065 for c in cases], truths) / photos, 4),
        "style_080": round(style_distance([c.lora_080 for c in cases], truths) / photos, 4),
        "from_source_065": mean([raw_distance(c.lora_065, c.source) for c in cases]),
        "from_source_080": mean([raw_distance(c.lora_080, c.source) for c in cases]),
        "portraits": len(cases),
    }


MEANING: dict[str, str] = {
    "distance_base": "the base's own img2img at strength 0.65: mean distance to the true anime rendering of the same portrait, in units of "
    "the source photo's distance (0: the true rendering, 1: as far as the photo; demo/measure.py)",
    "distance_lora_065": "the same with the LoRA at strength 0.65, same prompts and noise",
    "distance_lora_080": "the same with the LoRA at strength 0.8",
    "attribute_error": "mean difference of the colours of hair, skin and background between the LoRA's pictures at 0.65 and the true "
    "rendering, as a share of full scale (0..1)",
    "attribute_errors": "the same for each of the three",
    "style_base": "how differently from the true renderings the base's own pictures at 0.65 are drawn, whatever lies where, in units "
    "of the photos' difference (0: as the true renderings, 1: as the photos; demo/measure.py)",
    "style_065": "the same for the LoRA's pictures at 0.65",
    "style_080": "the same for the LoRA's pictures at 0.8",
    "from_source_065": "distance of the LoRA's pictures at 0.65 from the source photo, not normalised",
    "from_source_080": "the same at 0.8",
    "moved_without_trigger": "how far the LoRA moves text-to-image pictures whose prompt lacks the trigger phrase, not normalised",
    "moved_with_trigger": "the same with the trigger phrase",
    "training_seconds": "seconds of the training child, from its start to the finished file",
    "training_steps": "optimiser steps",
    "demo_seconds": "seconds of the whole demonstration",
    "portraits": "portraits measured; none of them was trained on, neither by the base nor by the LoRA",
}
