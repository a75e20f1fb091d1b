"""Optimisers and learning-rate schedules. All but REX come from the libraries that maintain them.

Optional libraries are imported only when a run uses them; a missing one is an error that names its package.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

from ..adapters.adapter import Pair
from ..config.sections.optimizer import OptimizerSection
from ..core.errors import UserError

# Lion's sign updates need a third to a tenth of Adam's rate (Chen et al. 2023, section 5). Prodigy finds its own; its multiplier is 1.
_OPTIMIZER_FACTOR = {"lion": 0.2, "schedule-free": 2.0}
_REFERENCE_RANK = 16
OPTIMIZER_CLASS = {  # names in the metadata of LoRA files
    "adamw": "torch.optim.adamw.AdamW",
    "adamw8bit": "bitsandbytes.optim.adamw.AdamW8bit",
    "adafactor": "transformers.optimization.Adafactor",
    "lion": "lion_pytorch.lion_pytorch.Lion",
    "prodigy": "prodigyopt.prodigy.Prodigy",
    "schedule-free": "schedulefree.adamw_schedulefree.AdamWScheduleFree",
}


def learning_rate(settings: OptimizerSection, usual: float, rank: int) -> float:
    """The rate in ``settings``. For ``auto``, it depends on the family's ``usual`` rate and the optimiser, and is lower for ranks above 16.

    At scale 1, the sum over more ranks moves the weights further, so the rate falls with the square root of the rank.
    """
    if settings.lr != "auto":
        return settings.lr
    if settings.name == "prodigy":
        return 1.0
    rate: float = usual * _OPTIMIZER_FACTOR.get(settings.name, 1.0)
    return rate * min(1.0, math.sqrt(_REFERENCE_RANK / rank))


def current_learning_rate(optimizer: Any) -> float:
    """The rate of the next step, of the first parameter group. Prodigy's own estimate, ``d``, multiplies its rate."""
    group = optimizer.param_groups[0]
    return float(group["lr"]) * float(group.get("d", 1.0))


def text_learning_rate(settings: OptimizerSection, lr: float) -> float:
    """The rate of the text encoders' LoRA. For ``auto``, half of the denoiser's ``lr``; with Prodigy, the same."""
    if settings.text_encoder_lr != "auto":
        return settings.text_encoder_lr
    return lr if settings.name == "prodigy" else lr / 2


def make_optimizer(pairs: Sequence[Pair], settings: OptimizerSection, lr: float) -> Any:
    """The optimiser of all pairs; the text encoders' have another learning rate, and the text adapter's a third.

    With LoRA+ (Hayou et al. 2024), ``up`` has ``lora_plus_ratio`` times the rate. DoRA's magnitudes have no weight decay, which would pull
    them towards zero: they start at the norms of the base's weights and stay near those.
    """
    import torch

    groups: list[dict[str, Any]] = []
    text_lr = text_learning_rate(settings, lr)
    rates = {("unet",): lr, ("te1", "te2"): text_lr, ("adapter",): settings.text_adapter_lr}
    for components, rate in rates.items():
        part = [pair for pair in pairs if pair.component in components]
        if not part:
            continue
        if settings.lora_plus_ratio == 1:
            groups.append({"params": [matrix for pair in part for matrix in (pair.down, pair.up)], "lr": rate})
        else:
            groups.append({"params": [pair.down for pair in part], "lr": rate})
            groups.append({"params": [pair.up for pair in part], "lr": rate * settings.lora_plus_ratio})
        if magnitudes := [pair.magnitude for pair in part if pair.magnitude is not None]:
            groups.append({"params": magnitudes, "lr": rate, "weight_decay": 0.0})
    arguments = optimizer_arguments(settings)
    if settings.name == "adamw":
        try:
            # copies, because it changes the groups even if it then fails
            return torch.optim.AdamW([dict(group) for group in groups], lr=lr, **arguments, fused=True)
        except RuntimeError:  # torch before 2.4 has no fused version for CPUs
            return torch.optim.AdamW(groups, lr=lr, **arguments)
    if settings.name == "adamw8bit":
        return _library("bitsandbytes", "bitsandbytes").optim.AdamW8bit(groups, lr=lr, **arguments)
    if settings.name == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(groups, lr=lr, **arguments)
    if settings.name == "lion":
        return _library("lion_pytorch", "lion-pytorch").Lion(groups, lr=lr, **arguments)
    if settings.name == "prodigy":
        return _library("prodigyopt", "prodigyopt").Prodigy(groups, lr=lr, **arguments)
    return _library("schedulefree", "schedulefree").AdamWScheduleFree(groups, lr=lr, **arguments)


def optimizer_arguments(settings: OptimizerSection) -> dict[str, Any]:
    """The optimiser's arguments besides the rate, under its library's names."""
    decay: dict[str, Any] = {"weight_decay": settings.weight_decay}
    if settings.name == "adafactor":
        # a fixed rate, as in every LoRA trainer: relative steps are meant for training from scratch
        return {**decay, "scale_parameter": False, "relative_step": False, "warmup_init": False}
    if settings.name == "lion":
        # its own default is 0.99; AdamW's 0.999 forgets too slowly for sign updates
        return {**decay, "betas": (settings.beta1, 0.99 if settings.beta2 == 0.999 else settings.beta2)}
    usual = {**decay, "betas": (settings.beta1, settings.beta2), "eps": settings.eps}
    if settings.name == "prodigy":
        return {**usual, "use_bias_correction": True, "safeguard_warmup": True}
    if settings.name == "schedule-free":
        return {**usual, "warmup_steps": settings.warmup_steps}
    return usual


def make_schedule(optimizer: Any, settings: OptimizerSection, steps: int) -> Any:
    """The learning-rate schedule over ``steps`` optimiser steps, stepped once after each.

    ``rex`` (Chen et al. 2021) falls as (1 - p) / (1 - p / 2), p the share of steps done after the warm-up; schedule-free has none.
    """
    from diffusers.optimization import get_scheduler
    from torch.optim.lr_scheduler import LambdaLR

    if settings.name == "schedule-free":
        return LambdaLR(optimizer, lambda step: 1.0)
    if settings.schedule == "rex":
        return LambdaLR(optimizer, lambda step: rex(step, settings.warmup_steps, steps))
    name = "constant_with_warmup" if settings.schedule == "constant" and settings.warmup_steps else settings.schedule
    return get_scheduler(
        name,
        optimizer,
        num_warmup_steps=settings.warmup_steps,
        num_training_steps=steps,
        num_cycles=settings.cycles,
        power=settings.power,
        step_rules=settings.step_rules or None,
    )


def follow_schedule(optimizer: Any, schedule: Any) -> None:
    """Give a restored ``optimizer`` the rate that ``schedule`` has at the restored step: of a longer run than the one that was saved, it is
    another one. ``schedule`` is one that ``make_schedule`` made, a LambdaLR."""
    for group, rate, factor in zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = rate * factor(schedule.last_epoch)


def rex(step: int, warmup: int, steps: int) -> float:
    """REX's factor at ``step`` of ``steps`` after a linear warm-up; it ends at 0."""
    if step < warmup:
        return step / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    return (1 - done) / (1 - done / 2)


def _library(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"The optimizer needs the package {package}, which is not installed ({error}).",
            f"Install it into ComfyUI's Python: pip install {package}; or choose the optimizer adamw.",
            kind="dependency",
        ) from error
