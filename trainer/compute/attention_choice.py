"""Chooses the attention kernel of a run, once, by a call that really runs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ..core.devices import has_cudnn_attention
from ..core.diagnosis import first_line
from ..core.errors import UserError
from ..core.messages import Message, Setting
from .attention_processor import heads_first

if TYPE_CHECKING:
    import torch

_TRIAL_SHAPE = (1, 16, 2, 32)  # batch, tokens, heads, channels


def choose_attention(setting: str, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """``("sdpa" or "xformers", problem)``. The problem is why xformers cannot be used; empty unless it is installed and does not work.

    ``auto`` takes xformers where it works, except on Hopper and newer GPUs, where torch has cuDNN's attention. Raises UserError when the
    setting is ``xformers`` and it does not work.
    """
    if setting == "sdpa" or (setting == "auto" and has_cudnn_attention(device)):
        return "sdpa", ""
    try:
        _try_xformers(device, dtype)
    except ModuleNotFoundError as error:
        # "No module named 'xformers._C'" is a broken installation
        problem = "" if error.name == "xformers" else str(error)
    except Exception as error:  # whatever a kernel library may raise: it imports on machines where its first call fails
        problem = first_line(error)
    else:
        return "xformers", ""
    if setting == "xformers":
        raise UserError(
            f"xformers does not work on this {device.type} in {str(dtype).removeprefix('torch.')}: {problem or 'it is not installed'}.",
            Message(
                "Set ", Setting("training.attention", "sdpa"), " (as fast on current GPUs), or install the xformers that fits your torch."
            ),
            kind="dependency",
        )
    return "sdpa", problem


def _try_xformers(device: torch.device, dtype: torch.dtype) -> None:
    """One tiny forward and backward call. Raises whatever it raises, also for a wrong result."""
    import torch

    from .self_check import functions_agree

    kernel = importlib.import_module("xformers.ops").memory_efficient_attention
    inputs = [torch.randn(_TRIAL_SHAPE, generator=torch.Generator().manual_seed(index)).to(device, dtype) for index in range(3)]
    if not functions_agree(kernel, heads_first(torch.nn.functional.scaled_dot_product_attention), inputs, 0.02):
        raise RuntimeError("its result is wrong")
