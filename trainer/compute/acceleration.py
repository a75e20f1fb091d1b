"""The interface between a training step and what makes it faster or smaller. ``accelerations.py`` lists what implements it.

The plain step in ``training/recipe.py`` is complete without any acceleration. It knows two hooks: before adapters are put in, an
acceleration may change the frozen denoiser; after that, it may wrap the function that computes the gradients of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..config.run_config import RunConfig
from ..runs.run_plan import RunPlan

if TYPE_CHECKING:
    import torch
    from torch import nn

Inputs = dict[str, Any]
"""A micro-batch on the device: tensors, None, or tables of tensors, by name."""


class Batch(Protocol):
    """What an acceleration reads of a micro-batch."""

    @property
    def latents(self) -> torch.Tensor:
        """(batch, channels, height, width)."""
        ...

    @property
    def loss_weight(self) -> float:
        """How much the micro-batch's mean loss counts in the loss of its step."""
        ...


ForwardBackward = Callable[[Any], "torch.Tensor"]
"""Takes a :class:`Batch`, adds its gradients to ``.grad`` of the trained parameters, and returns its weighted loss, detached."""


@dataclass(frozen=True)
class Context:
    """The run that an acceleration is part of. ``warn`` shows a message to the user; ``buckets`` counts the image sizes;
    ``attention`` is the kernel that was chosen."""

    config: RunConfig
    device: torch.device
    dtype: torch.dtype
    buckets: int = 1
    attention: str = "sdpa"
    warn: Callable[[str], None] = lambda message: None


@dataclass(frozen=True)
class EagerPass:
    """The parts of the plain forward and backward pass, for an acceleration that computes it in another way."""

    denoiser: nn.Module
    network: nn.Module  # the denoiser and all else that is trained
    parameters: Sequence[torch.nn.Parameter]  # those that are trained
    to_device: Callable[[Any], Inputs]  # takes a Batch
    loss: Callable[[Inputs], torch.Tensor]  # the mean over the micro-batch, not yet weighted
    scale: Callable[[torch.Tensor], torch.Tensor]  # fp16's gradient scaling; returns its argument in other dtypes


class Acceleration:
    """Base class: every method may be left as it is."""

    title: str = ""  # its name in messages

    def is_wanted(self, context: Context) -> bool:
        """Whether the settings ask for it or leave the choice open, and it makes sense on this device. Cheap."""
        raise NotImplementedError

    def is_required(self, config: RunConfig) -> bool:
        """Whether the settings ask for it by name, so that a run that cannot use it has to say so."""
        return False

    def problem(self, context: Context) -> str:
        """Why this machine cannot run it; empty if it can. May try a kernel on the device."""
        return ""

    def is_on(self, config: RunConfig, plan: RunPlan) -> bool:
        """Whether a run with this plan uses it."""
        raise NotImplementedError

    def extra_bytes(self, denoiser: nn.Module, context: Context) -> int:
        """Memory that it takes beyond the plain step's."""
        return 0

    def prepare(self, denoiser: nn.Module, context: Context) -> None:
        """Change the frozen ``denoiser`` in place, before adapters go in. It may be on the meta device, for planning."""

    def wrap(self, forward_backward: ForwardBackward, eager: EagerPass, context: Context) -> ForwardBackward:
        """A replacement for ``forward_backward``, which may already be wrapped."""
        return forward_backward


def gradients_apart(
    forward_backward: ForwardBackward, batch: Batch, parameters: Sequence[torch.nn.Parameter]
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """The loss and gradients of one pass, apart from the gradients already accumulated, which stay as they are even if the pass fails."""
    accumulated = [parameter.grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.grad = None
        loss = forward_backward(batch)
        return loss, [parameter.grad for parameter in parameters]
    finally:
        for parameter, gradient in zip(parameters, accumulated, strict=True):
            parameter.grad = gradient


def accumulate(parameters: Sequence[torch.nn.Parameter], gradients: Sequence[torch.Tensor | None]) -> None:
    """Add ``gradients`` to those of ``parameters``, as ``backward`` does."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is None:
            parameter.grad = gradient
        else:
            parameter.grad += gradient
