"""Which device and precision a run computes in."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from .errors import UserError
from .messages import Message, Setting

if TYPE_CHECKING:
    import torch

_OTHERS_GB = 1.5
_AMPERE, _HOPPER = 8, 9  # major compute capabilities; from Ampere on GPUs multiply bf16 matrices


def pick_device(asked: str) -> torch.device:
    """``auto``: a CUDA GPU when there is one, else the CPU. Raises UserError when ``cuda`` is asked for and missing."""
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "A CUDA GPU was requested, but torch finds none.",
            Message("Set ", Setting("training.device"), " to auto or cpu."),
            kind="device",
        )
    return torch.device("cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu")


def gpu_count() -> int:
    """CUDA GPUs of this machine."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def processor_threads(processes: int) -> int:
    """Threads for each of ``processes`` that share this machine: one for every core that they may run on."""
    import psutil

    return max(1, min(psutil.cpu_count(logical=False) or cores(), cores()) // processes)


def cores() -> int:
    """The processor cores that this process may use, those that share one counted apart."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


def pick_precision(asked: str, device: torch.device) -> str:
    """``auto``: bf16 where the device computes in it, else fp16 on CUDA, else fp32. Raises UserError for fp16 on a CPU."""
    import torch

    if asked == "fp16" and device.type == "cpu":
        raise UserError(
            "fp16 training needs a GPU.", Message("Set ", Setting("training.precision"), " to auto, bf16 or fp32."), kind="device"
        )
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= _AMPERE else "fp16"  # older GPUs only emulate bf16
    return "bf16" if cpu_has_bf16() else "fp32"


def has_cudnn_attention(device: torch.device) -> bool:
    """Whether ``device`` is a GPU on which torch's own attention is cuDNN's."""
    import torch

    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= _HOPPER


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 matrices in hardware (AVX-512 BF16 or AMX); without, bf16 is slower than fp32."""
    import torch

    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


def torch_dtype(precision: str) -> torch.dtype:
    """The torch dtype of ``bf16``, ``fp16`` or ``fp32``."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]


def total_memory_gb(device: torch.device) -> float:
    """Memory of the GPU in GB; on a CPU, the machine's."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 1e9
    import psutil

    return float(psutil.virtual_memory().total) / 1e9


def usable_memory_gb(device: torch.device) -> float:
    """What a run can have of it. Of a GPU, the driver, ComfyUI's own context and the desktop hold some: as the size decides which run it
    is (``training.memory = "auto"``), they count the same at any time, whatever is free just now."""
    return total_memory_gb(device) - (_OTHERS_GB if device.type == "cuda" else 0.0)


def use_own_gpu() -> None:
    """Of several processes on a machine each works on a GPU of its own from the start: the launcher says which."""
    import torch

    rank = os.environ.get("LOCAL_RANK", "")
    if rank.isdigit() and int(rank) < gpu_count():
        torch.cuda.set_device(int(rank))


def return_memory(device: torch.device) -> None:
    """Give what was freed back to the system: torch keeps a GPU's memory for later, and glibc (Linux) that of smaller tensors on a CPU."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library, as in Alpine
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory of this process so far in GB: of the GPU's allocator on CUDA, resident memory on a CPU."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    import psutil

    memory = psutil.Process().memory_info()
    peak = getattr(memory, "peak_wset", None)  # Windows keeps the peak here
    if peak is None:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return float(peak) / 1e9
