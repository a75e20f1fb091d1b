"""The device, precision and memory of a run."""

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

_RESERVED_GB = 1.5  # for the driver, ComfyUI's own context and the desktop
_AMPERE, _HOPPER = 8, 9  # major compute capabilities; GPUs have bf16 matrix units since Ampere


def pick_device(requested: str) -> torch.device:
    """The device for ``requested``; ``auto`` is a CUDA GPU if there is one, else the CPU. Raises UserError if ``cuda`` is not available."""
    import torch

    if requested == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "A CUDA GPU was requested, but torch finds none.",
            Message("Set ", Setting("training.device"), " to auto or cpu."),
            kind="device",
        )
    return torch.device("cuda" if requested != "cpu" and torch.cuda.is_available() else "cpu")


def gpu_count() -> int:
    """The number of CUDA GPUs of this machine."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def processor_threads(processes: int) -> int:
    """Threads for each of ``processes`` on this machine, so that together they use every available core once."""
    import psutil

    return max(1, min(psutil.cpu_count(logical=False) or cores(), cores()) // processes)


def cores() -> int:
    """The logical processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


def pick_precision(requested: str, device: torch.device) -> str:
    """The precision for ``requested``; ``auto`` is bf16 if the device supports it in hardware, else fp16 on CUDA, else fp32.

    Raises UserError for fp16 on a CPU.
    """
    import torch

    if requested == "fp16" and device.type == "cpu":
        raise UserError(
            "fp16 training needs a GPU.", Message("Set ", Setting("training.precision"), " to auto, bf16 or fp32."), kind="device"
        )
    if requested != "auto":
        return requested
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= _AMPERE else "fp16"  # older GPUs only emulate bf16
    return "bf16" if cpu_has_bf16() else "fp32"


def has_cudnn_attention(device: torch.device) -> bool:
    """Whether torch's attention on ``device`` uses cuDNN."""
    import torch

    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= _HOPPER


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 matrices in hardware (AVX-512 BF16 or AMX); otherwise bf16 is slower than fp32."""
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


def has_own_memory(device: torch.device) -> bool:
    """Whether tensors on ``device`` are elsewhere than in main memory."""
    return device.type == "cuda"


def usable_memory_gb(device: torch.device) -> float:
    """The memory in GB that a run can use.

    A fixed amount of a GPU is reserved, whatever is free at the moment, because with ``training.memory = "auto"`` the size is part of the
    run's identity.
    """
    return total_memory_gb(device) - (_RESERVED_GB if device.type == "cuda" else 0.0)


def use_own_gpu() -> None:
    """Select the GPU that the launcher assigned to this process."""
    import torch

    rank = os.environ.get("LOCAL_RANK", "")
    if rank.isdigit() and int(rank) < gpu_count():
        torch.cuda.set_device(int(rank))


def return_memory(device: torch.device) -> None:
    """Return freed memory to the system: torch caches GPU memory, and glibc (Linux) that of smaller tensors on a CPU."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library, such as Alpine's
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory of this process so far in GB: that of torch's allocator on CUDA, resident memory on a CPU."""
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
