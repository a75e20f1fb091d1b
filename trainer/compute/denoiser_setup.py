"""How the UNet computes: packed base, attention kernel, memory layout, checkpointing, compiled blocks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..config.sections.training import TrainingSection
from ..core.messages import Message, Setting
from .attention import use_attention
from .quantise import quantise

if TYPE_CHECKING:
    import torch
    from torch import nn

_COMPILER = "inductor"  # torch's own
_BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")  # repeated many times with few shapes; also what checkpointing recomputes at once


def prepare_base(
    unet: nn.Module,
    training: TrainingSection,
    attention: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    warn: Callable[[str], None],
    prepacked: bool = False,
    fused: bool = False,
    draws: bool = False,
) -> None:
    """Set up the frozen ``unet``, before LoRA goes in; ``prepacked``: its layers, see onednn_layers.py; ``fused``: its blocks, see
    fused_blocks.py; ``draws``: whether its passes will draw random numbers; ``warn`` is told what was asked for and cannot be done."""
    import torch

    if training.base_precision != "same":
        quantise(unet, training.base_precision, device)
    use_attention(unet, attention, device, dtype)
    if prepacked:
        from .onednn_layers import prepack

        prepack(unet)
    if channels_last(training.channels_last, device, dtype):
        unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if fused:
        from .fused_blocks import fuse

        fuse(unet)
    elif training.fused == "on" and may_fuse(training, device, dtype):
        problem = kernels_problem(device, dtype)
        warn(Message(Setting("training.fused"), f" does not work here, so the run continues without it, at normal speed ({problem})."))
    if training.gradient_checkpointing:
        _checkpoint(unet, draws)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # shapes are few: one of each bucket


def may_fuse(training: TrainingSection, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the settings want fused blocks where their kernels work. Not for a compiler: it fuses by itself."""
    wanted = training.fused != "off" and device.type == "cuda" and not training.compile
    return wanted and channels_last(training.channels_last, device, dtype)


@lru_cache
def kernels_problem(device: torch.device, dtype: torch.dtype) -> str:
    """Why blocks cannot be fused: no Triton (torch for Windows has none), no C compiler, a GPU that it does not know; "" where they can."""
    import torch

    try:
        from .triton_kernels import works
    except Exception as error:  # a Triton that does not fit this torch fails with anything
        return str(error) or type(error).__name__
    with torch.inference_mode(False), torch.enable_grad():  # also where a plan is made in ComfyUI, whose nodes run without gradients
        return works(device, dtype)


def _checkpoint(unet: Any, draws: bool) -> None:
    """Have every block computed again in the backward pass.

    As torch does it by default, the state of the random numbers is copied from the GPU at every block, which waits for it and cannot be
    part of a CUDA graph. Where nothing is drawn that is left out.
    """
    from torch.utils.checkpoint import checkpoint

    def without_state(module: Any, *args: Any) -> Any:
        return checkpoint(module.__call__, *args, use_reentrant=False, preserve_rng_state=False)

    takes_function = "gradient_checkpointing_func" in inspect.signature(unet.enable_gradient_checkpointing).parameters
    unet.enable_gradient_checkpointing(*([without_state] if takes_function and not draws else []))


def channels_last(setting: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether convolutions get channels-last tensors. ``auto``: where tensor cores want them, CUDA in half precision, and on a CPU."""
    return setting == "on" or (setting == "auto" and (device.type == "cpu" or dtype.itemsize == 2))


def blocks(unet: nn.Module) -> list[nn.Module]:
    """The repeated blocks of ``unet``."""
    return [module for module in unet.modules() if any(kind.__name__ in _BLOCKS for kind in type(module).__mro__)]


def compile_blocks(unet: nn.Module) -> None:
    """Have each repeated block compiled at its first call: alike blocks share their kernels, so that it takes minutes, not hours.

    The UNet as a whole must not be: compiled for a CPU by torch 2.13 it returns gradients of zero for half of its weights.
    """
    import torch

    torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)
    for block in blocks(unet):
        block.compile(backend=_COMPILER)


def undo_compile(unet: nn.Module) -> None:
    """Let every block run as it was written."""
    block: Any
    for block in blocks(unet):
        block._compiled_call_impl = None


@contextmanager
def not_compiled(unet: nn.Module) -> Iterator[None]:
    """Within it every block runs as it was written, afterwards compiled again."""
    compiled: list[Any] = [(block, block._compiled_call_impl) for block in blocks(unet)]
    undo_compile(unet)
    try:
        yield
    finally:
        for block, call in compiled:
            block._compiled_call_impl = call
