"""The denoiser's repeated blocks compiled by ``torch.compile``, checked against eager blocks for every new shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..config.run_config import RunConfig
from ..core.diagnosis import first_line, is_out_of_memory
from ..runs.run_plan import RunPlan
from . import torch_private
from .acceleration import Acceleration, Batch, Context, EagerPass, ForwardBackward, accumulate, gradients_apart
from .denoiser_setup import blocks

if TYPE_CHECKING:
    import torch
    from torch import nn

_BACKEND = "inductor"  # torch's own
_VERSIONS = 64  # of a block: one for each shape and for each kind of LoRA layer


class CompiledBlocks(Acceleration):
    """``training.compile``."""

    title = "torch.compile"

    def is_wanted(self, context: Context) -> bool:
        """When the setting is on."""
        return context.config.training.compile

    def is_on(self, config: RunConfig, plan: RunPlan) -> bool:
        """When the setting is on."""
        return config.training.compile

    def wrap(self, forward_backward: ForwardBackward, eager: EagerPass, context: Context) -> ForwardBackward:
        """Compile the blocks; back to eager ones at the first failure or wrong gradient."""
        compile_blocks(eager.denoiser)
        return CheckedPass(forward_backward, eager, context)


class CheckedPass:
    """A pass through compiled blocks, with the gradients of eager ones or not at all.

    A compiler can be wrong without failing. So the first passes of each shape, for which it compiles, are computed by eager blocks as well,
    once with the weights as they are and once with weights of which none is close to zero. Dropout draws other numbers in compiled blocks,
    so that with it nothing can be compared.
    """

    def __init__(self, forward_backward: ForwardBackward, eager: EagerPass, context: Context) -> None:
        self._forward_backward, self._denoiser, self._parameters = forward_backward, eager.denoiser, eager.parameters
        self._comparable = not context.config.network.dropout
        self._warn = context.warn
        self._checked: Counter[tuple[int, ...]] = Counter()  # passes by shape of their latents
        self._compiled = True

    def __call__(self, batch: Batch) -> torch.Tensor:
        """See :data:`ForwardBackward`."""
        if not self._compiled:
            return self._forward_backward(batch)
        from .self_check import CHECKED_PASSES

        shape = tuple(batch.latents.shape)
        try:
            loss, gradients = gradients_apart(self._forward_backward, batch, self._parameters)
            if not self._comparable or self._checked[shape] >= CHECKED_PASSES or self._agrees_with_eager(batch, gradients):
                self._checked[shape] += 1
                accumulate(self._parameters, gradients)
                return loss
            reason = "its gradients were not those of the eager blocks"
        except Exception as error:  # a compiler can fail in any way, and in the backward pass too
            if is_out_of_memory(error):
                raise
            reason = first_line(error)
        self._compiled = False
        remove_compiled(self._denoiser)
        self._warn(f"torch.compile failed, so training continues without it, at normal speed ({reason}).")
        return self._forward_backward(batch)

    def _agrees_with_eager(self, batch: Batch, gradients: Sequence[torch.Tensor | None]) -> bool:
        from .self_check import gradients_agree, replace_small_weights

        if not gradients_agree(gradients, self._eager_gradients(batch)):
            return False
        with replace_small_weights(self._parameters) as replaced:
            if not replaced:
                return True
            compiled = gradients_apart(self._forward_backward, batch, self._parameters)[1]
            return gradients_agree(compiled, self._eager_gradients(batch))

    def _eager_gradients(self, batch: Batch) -> list[torch.Tensor | None]:
        with eager_blocks(self._denoiser):
            return gradients_apart(self._forward_backward, batch, self._parameters)[1]


def compile_blocks(denoiser: nn.Module) -> None:
    """Have each repeated block compiled at its first call. Blocks that are alike share kernels, so that this takes minutes, not hours.

    The denoiser as a whole must not be compiled: torch 2.13 then returns gradients of zero for half of a UNet's weights on a CPU.
    """
    torch_private.allow_recompiles(_VERSIONS)
    for block in blocks(denoiser):
        block.compile(backend=_BACKEND)


def remove_compiled(denoiser: nn.Module) -> None:
    """Let every block run eagerly."""
    for block in blocks(denoiser):
        torch_private.set_compiled_call(block, None)


@contextmanager
def eager_blocks(denoiser: nn.Module) -> Iterator[None]:
    """Inside, every block runs eagerly; afterwards it is compiled again."""
    compiled: list[tuple[Any, Any]] = [(block, torch_private.compiled_call(block)) for block in blocks(denoiser)]
    remove_compiled(denoiser)
    try:
        yield
    finally:
        for block, call in compiled:
            torch_private.set_compiled_call(block, call)
