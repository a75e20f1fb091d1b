"""What tests that compare with diffusers' own recipe share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from tests.unit.training_helpers import Trained, train_here
from trainer.adapters import adapter
from trainer.config.run_config import RunConfig
from trainer.core import seeding
from trainer.dataset import open_dataset
from trainer.dataset.loading import batch_order
from trainer.families import family_of, open_checkpoint
from trainer.objective.choose import choose_prediction, make_noise_process
from trainer.runs.run_folder import cache_folder
from trainer.training import optimizers, recipe
from trainer.training.caching.cache import Cache
from trainer.training.micro_batch import MicroBatch, build_micro_batch

Gradients = list[dict[str, torch.Tensor]]


def draws(config: RunConfig, tokenize: Any = None) -> list[list[MicroBatch]]:
    """The micro-batches of every step, as the trainer draws them; ``tokenize`` makes conditions of captions, in place of the cache."""
    dataset, checkpoint = open_dataset(Path(config.dataset.path)), open_checkpoint(config.base.checkpoint)
    family, training = family_of(checkpoint), config.training
    text = family.text_settings(training.max_tokens, training.clip_skip, training.empty_prompt)
    cache = Cache(cache_folder(config), checkpoint.identity(), family.latents, text)
    process = make_noise_process(family, choose_prediction(family, checkpoint, config.objective))
    sizes = [(item.width, item.height) for item in dataset.items]
    repeats = [item.repeats for item in dataset.items]
    steps = []
    for epoch in range(config.training.epochs):
        batches = batch_order.epoch_batches(sizes, repeats, config.training.batch_size, seed=config.training.seed, epoch=epoch)
        for group in batch_order.group(batches, config.training.gradient_accumulation):
            fixed: dict[str, Any] = {"seed": config.training.seed, "epoch": epoch, "process": process, "tokenize": tokenize}
            steps.append([build_micro_batch(slots, dataset, cache, config.objective, **fixed) for slots in group])
    return steps


def names(unet: Any) -> dict[str, torch.nn.Parameter]:
    """The trained parameters of a peft UNet under the trainer's names."""
    short = {"lora_A.default.weight": "down", "lora_B.default.weight": "up"}
    return {
        f"{name.split('.lora_')[0]}.{short['lora_' + name.split('.lora_')[1]]}": parameter
        for name, parameter in unet.named_parameters()
        if parameter.requires_grad
    }


def add_peft_adapter(denoiser: Any, first: torch.nn.Module, modules: list[str], config: RunConfig) -> None:
    """Put peft's adapter on ``modules`` of ``denoiser``, with the trainer's first weights, drawn on the copy ``first``."""
    rank, alpha = config.network.rank, config.network.alpha
    adapter.inject(first, modules, rank=rank, alpha=alpha, seed=seeding.derive_seed(config.training.seed, "weights") % 2**32)
    start = adapter.state(first)
    denoiser.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=modules))
    with torch.no_grad():
        for name, parameter in names(denoiser).items():
            parameter.copy_(start[name])


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """How far apart two adapters are, as a share of what was learned: the norm of up times down, summed over modules.

    Single weights may differ more: Adam divides by the gradient's size, and where that is rounding only, so is the update.
    """
    assert first.keys() == second.keys()
    apart = learned = 0.0
    for name in first:
        if name.endswith(".up"):
            products = [lora[name].flatten(1) @ lora[name[:-2] + "down"].flatten(1) for lora in (first, second)]
            apart += float((products[0] - products[1]).square().sum())
            learned += float(products[0].square().sum())
    return math.sqrt(apart / learned)


def is_linear_or_1x1(module: torch.nn.Module) -> bool:
    """What kohya adapts inside a transformer."""
    return isinstance(module, torch.nn.Linear) or (isinstance(module, torch.nn.Conv2d) and module.kernel_size == (1, 1))


def train_ours(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[Trained, Gradients]:
    """A run of the trainer, and the gradients that its optimiser was given."""
    given: Gradients = []
    make = optimizers.make_optimizer

    def watched(pairs: Any, *rest: Any) -> Any:
        optimizer = make(pairs, *rest)
        tensors = {name: parameter for pair in pairs for name, parameter in pair.tensors.items()}
        optimizer.register_step_pre_hook(
            lambda *_: given.append({name: p.grad.clone() for name, p in tensors.items() if p.grad is not None})
        )
        return optimizer

    monkeypatch.setattr(recipe, "make_optimizer", watched)
    return train_here(config), given
