"""The same work for each trainer: its files, command line and launcher."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from random_checkpoints import anima
from random_checkpoints.make_checkpoint import VERSION, make_checkpoint
from trainer.config import run_config
from trainer.config.overrides import apply_override
from trainer.dataset import PrepareSettings, export_dataset, open_dataset, prepare_dataset
from trainer.families import family_of, open_checkpoint
from trainer.families.stable_diffusion.clip_text import tokenizer_folder
from trainer.launch import launcher
from trainer.launch.prepared_run import prepare_run
from trainer.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from benchmarks.work import Work

TRAINERS = ("ours", "kohya", "diffusers")
TIMED = Path(__file__).resolve().with_name("timed.py")
RATE = 1e-4
MODELS = ("sd1", "sdxl", "anima", "anima-4")
ANIMA_SIZES = {"anima": "full", "anima-4": "shallow"}  # the second is as wide, and has four blocks of 28
# the 192 modules of SD 1.5 that kohya's --network_module networks.lora adapts, in diffusers' names
MODULES = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
_CAPTION = (
    "1girl, solo, long hair, looking at viewer, smile, open mouth, blue eyes, blonde hair, bangs, blush, school uniform, serafuku, "
    "pleated skirt, white shirt, red ribbon, hair ornament, hair bow, holding, bag, outdoors, sky, cloud, day, cherry blossoms, "
    "petals, wind, standing, cowboy shot, dutch angle, depth of field"
)
_KOHYA_TOKENIZERS = ("openai_clip-vit-large-patch14", "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k")


@dataclass(frozen=True)
class Prepared:
    """A trainer's input files, and its output folder."""

    checkpoint: Path
    dataset: Path
    folder: Path


def checkpoint_path(folder: Path, model: str) -> Path:
    """The path in ``folder`` of the full-size random checkpoint for ``model`` (a key of ``MODELS``)."""
    if model in ANIMA_SIZES:
        return folder / f"random-{model}" / anima.DENOISER
    return folder / f"random-{model}-v{VERSION}.safetensors"


def checkpoint(folder: Path, model: str) -> Path:
    """That checkpoint, written if it does not exist."""
    path = checkpoint_path(folder, model)
    if not path.is_file() and model in ANIMA_SIZES:
        anima.make_anima(folder / f"random-{model}", ANIMA_SIZES[model])
    elif not path.is_file():
        make_checkpoint(path, {"sd1": "full", "sdxl": "full-sdxl"}[model])
    return path


def dataset(folder: Path, resolution: int, pictures: int) -> Path:
    """The folder of a prepared dataset of ``pictures`` images of ``resolution`` pixels, each repeated ten times an epoch.

    Each has a caption of the usual length: Anima's text encoders, unlike CLIP, read as many tokens as there are.
    """
    source = folder / f"pictures-{resolution}"
    if not source.is_dir():
        source.mkdir(parents=True)
        random = np.random.default_rng(0)
        for index in range(pictures):
            small = Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=np.uint8))
            small.resize((resolution, resolution), Image.Resampling.BICUBIC).save(source / f"{index}.png")
            (source / f"{index}.txt").write_text(_CAPTION, encoding="utf-8")
    settings = PrepareSettings(trigger="myStyle", class_description="anime_face", resolution=resolution, repeats=10)
    return prepare_dataset(source, folder / f"datasets-{resolution}", settings).dataset.path


def prepare(trainer: str, checkpoint: Path, dataset: Path, folder: Path) -> Prepared:
    """Convert checkpoint and dataset to the trainer's format. Not timed, since users do it once."""
    if trainer == "ours":
        return Prepared(checkpoint, dataset, folder)
    if trainer == "kohya":
        cache = folder / "tokenizers"
        for name in _KOHYA_TOKENIZERS:
            shutil.copytree(tokenizer_folder(), cache / name, dirs_exist_ok=True)
        return Prepared(checkpoint, export_dataset(open_dataset(dataset), "kohya"), folder)
    converted = folder / f"{checkpoint.stem}-diffusers"
    if not converted.is_dir():
        import torch

        opened = open_checkpoint(str(checkpoint))
        family_of(opened).pipeline(opened, dtype=torch.float16).save_pretrained(converted)
    return Prepared(converted, export_dataset(open_dataset(dataset), "imagefolder"), folder)


def run(trainer: str, work: Work, prepared: Prepared, out: Path, *, path: Path | None, python: str, settings: Sequence[str]) -> None:
    """Train; ``timed.py`` writes ``out``. Raises CalledProcessError or UserError when the trainer fails."""
    if trainer == "ours":
        _ours(work, prepared, out, settings)
        return
    assert path is not None
    command = _kohya(work, prepared, path) if trainer == "kohya" else _diffusers(work, prepared, path)
    timed = [str(TIMED), str(out), *(("--targets", ",".join(MODULES)) if trainer == "diffusers" else ())]
    timed += ["--blocks", str(anima.SIZES[ANIMA_SIZES[work.model]].blocks)] if work.model in ANIMA_SIZES else []
    precision = "no" if work.precision == "fp32" else work.precision
    start = [python, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", precision]
    start += ["--num_cpu_threads_per_process", str(os.cpu_count() or 1), "--dynamo_backend", "no"]
    start += ["--cpu"] if work.device == "cpu" else []
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(prepared.folder / "datasets-cache")}
    subprocess.run([*start, *timed, *command], check=True, cwd=prepared.folder, env={**os.environ, **offline})


def _ours(work: Work, prepared: Prepared, out: Path, settings: Sequence[str]) -> None:
    """Train as the node and the command line do, with ``timed.py`` between the launcher and the child's script."""
    command = launcher.command

    def timed(run: RunFolder) -> list[str]:
        whole = command(run)
        script = next(index for index, part in enumerate(whole) if part.endswith("entry.py"))
        return [*whole[:script], str(TIMED), str(out), *whole[script:]]

    data: dict[str, Any] = {
        "base": {"checkpoint": str(prepared.checkpoint)},
        "dataset": {"path": str(prepared.dataset)},
        "network": {"rank": work.rank, "alpha": float(work.rank)},
        "optimizer": {"lr": RATE},
        "training": {
            "epochs": 1 + work.steps * work.batch // 10,
            "max_steps": work.steps,
            "batch_size": work.batch,
            "gradient_accumulation": 1,
            "gradient_checkpointing": work.checkpointing,
            "precision": work.precision,
            "device": work.device,
            "checkpoint_every": 0,
        },
        "sample": {"every_epochs": 0},
        # separate caches and runs, so that nothing encoded earlier is reused
        "output": {"runs": str(out.with_suffix("")), "tensorboard": False},
    }
    for setting in settings:
        apply_override(data, setting, example="training.compile=true")
    launcher.command = timed
    try:
        launcher.train(prepare_run(run_config.parse(data)))
    finally:
        launcher.command = command


def _kohya(work: Work, prepared: Prepared, path: Path) -> list[str]:
    flows = work.model in ANIMA_SIZES
    script = "anima_train_network.py" if flows else {"sd1": "train_network.py", "sdxl": "sdxl_train_network.py"}[work.model]
    models = prepared.checkpoint.parent.parent
    return [
        *(str(path / script), "--pretrained_model_name_or_path", str(prepared.checkpoint)),
        *("--dataset_config", str(prepared.dataset / "dataset.toml"), "--train_batch_size", str(work.batch)),
        *("--network_module", "networks.lora_anima" if flows else "networks.lora"),
        *("--network_dim", str(work.rank), "--network_alpha", str(work.rank)),
        *("--network_train_unet_only", "--cache_latents", "--sdpa"),
        *(["--qwen3", str(models / anima.TEXT_ENCODER), "--vae", str(models / anima.VAE)] if flows else ["--no_half_vae"]),
        *("--optimizer_type", "AdamW", "--learning_rate", str(RATE), "--max_train_steps", str(work.steps), "--seed", "42"),
        *("--mixed_precision", "no" if work.precision == "fp32" else work.precision, "--save_precision", "fp16"),
        *("--max_data_loader_n_workers", "1", "--persistent_data_loader_workers"),
        *("--tokenizer_cache_dir", str(prepared.folder / "tokenizers")),
        *("--output_dir", str(prepared.folder / "kohya-out"), "--output_name", "speed", "--save_model_as", "safetensors"),
        *(["--gradient_checkpointing"] if work.checkpointing else []),
        # as its instructions advise; for SD 1.5 it has no such option
        *([] if work.model == "sd1" else ["--cache_text_encoder_outputs"]),
    ]  # fmt: skip


def _diffusers(work: Work, prepared: Prepared, path: Path) -> list[str]:
    script = {"sd1": "train_text_to_image_lora.py", "sdxl": "train_text_to_image_lora_sdxl.py"}[work.model]
    return [
        *(str(path / "examples" / "text_to_image" / script), "--pretrained_model_name_or_path", str(prepared.checkpoint)),
        *("--train_data_dir", str(prepared.dataset), "--resolution", str(work.resolution), "--center_crop"),
        *("--train_batch_size", str(work.batch), "--rank", str(work.rank), "--learning_rate", str(RATE), "--seed", "42"),
        *("--max_train_steps", str(work.steps), "--checkpointing_steps", "1000000", "--lr_scheduler", "constant"),
        *("--mixed_precision", "no" if work.precision == "fp32" else work.precision),
        *("--output_dir", str(prepared.folder / "diffusers-out")),
        *(["--gradient_checkpointing"] if work.checkpointing else []),
    ]
