"""Out-of-memory errors of each library are recognised by their messages."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.unit.compute.cuda_graphs.recording import Small
from trainer.core.diagnosis import diagnose, is_out_of_memory
from trainer.families import family_named
from trainer.training.caching.latent_cache import encode_latents

# as the libraries print them
SHORT = [
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.79 GiB",
    "HIP out of memory. Tried to allocate 20.00 MiB",
    "MPS backend out of memory (MPS allocated: 5.05 GB, other allocations: 4.00 GB)",
    "XPU out of memory. Tried to allocate 2.00 GiB",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "cuFFT error: CUFFT_ALLOC_FAILED",
    "CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
    "rocBLAS error: rocblas_status_memory_error",
    "miopenStatusAllocFailed",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "hipErrorOutOfMemory",
    "cudaErrorMemoryAllocation",
    "Triton Error [CUDA]: out of memory",
    "Unable to find a valid cuDNN algorithm to run convolution",
    "Invalid buffer size: 12.25 GiB",
    "Could not allocate tensor with 134217728 bytes. There is not enough GPU video memory available!",
    "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.",
    "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.",
    "std::bad_alloc",
    "bad allocation",
    "The paging file is too small for this operation to complete. (os error 1455)",
    "unable to mmap 4265380512 bytes from file <model>: Cannot allocate memory (12)",
]
OTHER = [
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED",
    "CUDA error: an illegal memory access was encountered",
    "out of resource: shared memory, Required: 131072, Hardware limit: 101376. Reducing block sizes may help.",
    "No operator found for `memory_efficient_attention_forward`",
    "Unable to allocate a port",
    "pin_memory is not supported",
    "",
]


@pytest.mark.parametrize("text", SHORT)
def test_out_of_memory_is_recognised_by_the_message_of_each_library(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text))
    error = diagnose(RuntimeError(text), Path())
    assert error.kind == "memory" and text.splitlines()[0] in error.message and "training.memory" in error.hint


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "no words"), torch.OutOfMemoryError("")], ids=repr)
def test_out_of_memory_is_recognised_by_type(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("text", OTHER)
def test_other_failures_are_not_out_of_memory(text: str) -> None:
    assert not is_out_of_memory(RuntimeError(text))


@pytest.mark.parametrize("text", SHORT[5:7])
def test_latents_are_encoded_in_smaller_batches_when_memory_runs_out(text: str) -> None:
    class Vae:
        def encode(self, pixels: torch.Tensor) -> Any:
            if len(pixels) > 1:
                raise RuntimeError(text)
            return SimpleNamespace(latent_dist=SimpleNamespace(mean=pixels[:, :1], std=pixels[:, 1:2]))

        config = SimpleNamespace(scaling_factor=1.0)

    pixels = torch.arange(24.0).view(3, 2, 2, 2)
    mean, std = encode_latents(family_named("sd1"), Vae(), pixels)
    assert torch.equal(mean, pixels[:, :1]) and torch.equal(std, pixels[:, 1:2])


@pytest.mark.parametrize("text", SHORT[5:7])
def test_a_pass_is_repeated_without_cuda_graphs_when_memory_runs_out(text: str) -> None:
    class Short(Small):
        def compute(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
            if self.short and self.passes._recordings:
                raise RuntimeError(text)
            return super().compute(inputs)

    small = Short()
    small.gradient(torch.ones(2))
    small.short = True
    assert small.gradient(torch.ones(3)) == 3
    assert len(small.warnings) == 1
