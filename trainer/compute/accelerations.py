"""The accelerations of a training step. To delete one, delete its line here and its file or folder."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from ..config.run_config import RunConfig
from ..core.messages import Message
from ..runs.run_plan import RunPlan
from . import torch_private
from .acceleration import Acceleration, Context

if TYPE_CHECKING:
    from torch import nn

# In the order in which they change the denoiser and wrap its passes. Imported when first used: most import torch or a kernel library.
_CLASSES: dict[str, str] = {
    "quantised_base": "quantised_base:QuantisedBase",
    "swapped_blocks": "swapped_blocks:SwappedBlocks",
    "attention": "attention:FasterAttention",
    "cpu_attention": "cpu_attention:CpuAttention",
    "cosmos_blocks": "cosmos_blocks:CosmosBlocks",
    "onednn": "onednn:OneDnnLayers",
    "fused_blocks": "fused_blocks:FusedBlocks",
    "compiled_blocks": "compiled_blocks:CompiledBlocks",
    "cuda_graphs": "cuda_graphs:CudaGraphs",
}


@cache
def _load(path: str) -> Acceleration:
    module, _, name = path.partition(":")
    # not pkgutil.resolve_name: ComfyUI loads the pack under the path of its folder, which is no valid name
    acceleration: Acceleration = getattr(import_module(f".{module}", __package__), name)()
    return acceleration


def find(name: str) -> Acceleration | None:
    """The acceleration with this name; None where it was removed."""
    return _load(_CLASSES[name]) if name in _CLASSES else None


def is_available(name: str, context: Context) -> bool:
    """Whether the acceleration is there, the settings allow it and this machine and this torch can run it. May try a kernel."""
    acceleration = find(name)
    return (
        acceleration is not None
        and acceleration.is_wanted(context)
        and not torch_private.missing(name)
        and not acceleration.problem(context)
    )


def extra_bytes(name: str, denoiser: nn.Module, context: Context) -> int:
    """Memory that the acceleration takes beyond the plain step's; 0 where it cannot be used."""
    acceleration = find(name)
    return acceleration.extra_bytes(denoiser, context) if acceleration is not None and is_available(name, context) else 0


def prepare(names: Iterable[str], denoiser: nn.Module, context: Context) -> None:
    """Let those of the accelerations that are there change ``denoiser``, which may be on the meta device."""
    for name in names:
        if (acceleration := find(name)) is not None:
            acceleration.prepare(denoiser, context)


def enabled(config: RunConfig, plan: RunPlan) -> list[Acceleration]:
    """The accelerations of a run, in the order in which they are applied."""
    return [_load(path) for name, path in _CLASSES.items() if not torch_private.missing(name) and _load(path).is_on(config, plan)]


def warnings(context: Context) -> list[str]:
    """A message for each acceleration that the run has to do without although it should have it."""
    messages: list[str] = []
    for name, path in _CLASSES.items():
        acceleration = _load(path)
        if not acceleration.is_wanted(context):
            continue
        if missing := torch_private.missing(name):
            reason = f"this version of torch has no {missing[0]}"
        elif acceleration.is_required(context.config):
            reason = acceleration.problem(context)
        else:
            continue
        if reason:
            messages.append(Message("Training runs without ", acceleration.title, f", at normal speed: {reason}."))
    return messages
