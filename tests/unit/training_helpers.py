"""Small datasets and runs: made in a second, trained in seconds."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers.models.attention import BasicTransformerBlock
from PIL import Image

from trainer.compute import denoiser_setup
from trainer.compute.lora_layers import LoraLayer
from trainer.config import run_config
from trainer.dataset import PrepareSettings, prepare_dataset
from trainer.launch.prepared_run import prepare_run, write_run_folder
from trainer.plan.meta_models import MetaModels
from trainer.runs import events
from trainer.runs.event_log import read_events
from trainer.runs.run_folder import RunFolder
from trainer.training import open_run
from trainer.training.run import train_run
from trainer.training.saving import checkpointer

PROMPTS = ["myStyle anime_face girl", "a cat"]
# quick settings that the tests build on; every one may be changed
DEFAULTS: dict[str, Any] = {
    "name": "style",
    "network": {"rank": 4, "alpha": 2.0},
    "optimizer": {"lr": 1e-3},
    "training": {"epochs": 1, "precision": "fp32", "device": "cpu", "checkpoint_every": 0},
    "sample": {"every_epochs": 0, "steps": 2},
    "output": {"tensorboard": False},
}
# a run that nothing disturbs, with states at 2, 4 and 6: what disturbed ones have to end in (the fixture ``undisturbed``)
UNDISTURBED: dict[str, object] = {
    "training.max_steps": 6,
    "training.gradient_accumulation": 1,
    "training.checkpoint_every": 2,
    "training.keep_checkpoints": 0,
}


def make_pictures(folder: Path, count: int, size: tuple[int, int] = (64, 64), seed: int = 0) -> Path:
    """``count`` pictures of coloured clouds."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for index in range(count):
        small = Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).save(folder / f"{index:02d}.png")
    return folder


def make_dataset(root: Path, count: int = 6, *, seed: int = 0, **settings: Any) -> Path:
    """A prepared dataset of ``count`` pictures of 64 pixels; its folder."""
    source = make_pictures(root / f"pictures-{count}-{seed}", count, seed=seed)
    chosen = PrepareSettings(**{"trigger": "myStyle", "class_description": "anime_face", "resolution": 64, **settings})
    return prepare_dataset(source, root / "datasets", chosen).dataset.path


def configuration(checkpoint: Path, dataset: Path, runs: Path, changes: Mapping[str, object] | None = None) -> run_config.RunConfig:
    """A run with ``DEFAULTS`` and ``changes`` such as ``{"training.epochs": 2}``."""
    data = copy.deepcopy(DEFAULTS)
    data["base"], data["dataset"] = {"checkpoint": str(checkpoint)}, {"path": str(dataset)}
    for key, value in {"output.runs": str(runs), **(changes or {})}.items():
        section, _, name = key.rpartition(".")
        (data.setdefault(section, {}) if section else data)[name] = value
    return run_config.parse(data)


@dataclass(frozen=True)
class Trained:
    """A run that this process trained, without a child."""

    status: int
    run: RunFolder
    told: list[events.Event]

    @property
    def steps(self) -> list[events.Step]:
        """The events of the steps."""
        return [event for event in self.told if isinstance(event, events.Step)]

    def state(self, step: int) -> dict[str, Any]:
        """The saved state after ``step``."""
        path = self.run.checkpoints / f"step-{step:06d}" / "state.pt"
        values: dict[str, Any] = torch.load(path, weights_only=True)
        return values


_PLANNED = MetaModels()


def train_here(configured: run_config.RunConfig) -> Trained:
    """Train in this process: the same code as the child's, without the seconds that a child takes to start.

    Runs with the same models share those of their plans, and the curve is an empty file; together they take half the time of a small run.
    """
    prepared = prepare_run(configured)
    write_run_folder(prepared)
    run = prepared.folder
    with (
        patch.object(checkpointer, "draw_loss_curve", lambda steps, path, **_: path.touch()),
        patch.object(open_run, "MetaModels", lambda: _PLANNED),
    ):
        status = train_run(run.path, watch_stdin=False)
    return Trained(status, run, read_events(run.events))


def lose_a_gradient(unet: Any) -> None:
    """In place of ``compile_blocks``: the last block's outputs are right and its gradients are zero."""
    block: Any = denoiser_setup.blocks(unet)[-1]

    def wrong(*arguments: Any, **named: Any) -> torch.Tensor:
        result: torch.Tensor = type(block).forward(block, *arguments, **named)
        result.register_hook(torch.zeros_like)
        return result

    block._compiled_call_impl = wrong


class _Detached(torch.nn.Module):
    """Stands where a LoRA layer's dropout stands."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.detach()


def lose_the_input_gradient(unet: Any) -> None:
    """In place of ``compile_blocks``: nothing goes back through the last transformer block's LoRA to the layers before.

    While LoRA's up is zero, that is as it should be.
    """
    block: Any = [each for each in denoiser_setup.blocks(unet) if isinstance(each, BasicTransformerBlock)][-1]

    def wrong(*arguments: Any, **named: Any) -> torch.Tensor:
        layers: list[Any] = [module for module in block.modules() if isinstance(module, LoraLayer)]
        for layer in layers:
            layer.lora_dropout = _Detached()
        result: torch.Tensor = type(block).forward(block, *arguments, **named)
        for layer in layers:
            layer.lora_dropout = torch.nn.Identity()
        return result

    block._compiled_call_impl = wrong


def thrown_back(trained: Trained, runs: Path, step: int) -> run_config.RunConfig:
    """A copy of a finished run in the folder ``runs``, as if it had ended after ``step``: its configuration, to go on with."""
    shutil.copytree(trained.run.path.parent, runs)
    data: dict[str, Any] = json.loads(trained.run.config.read_text(encoding="utf-8"))
    data["output"]["runs"] = str(runs)
    configured = run_config.parse(data)
    run = prepare_run(configured).folder
    later = [path for path in run.checkpoints.iterdir() if int(path.name.removeprefix("step-")) > step]
    assert later, "nothing is left to train"
    for path in [*later, run.result, run.lora]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return configured


def apart(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """The distance of two sets of tensors as a share of the second's size."""
    assert first.keys() == second.keys()
    differing = sum(float((first[name] - second[name]).square().sum()) for name in first)
    return math.sqrt(differing / sum(float(value.square().sum()) for value in second.values()))
