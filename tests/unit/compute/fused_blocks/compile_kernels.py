"""Compiles every kernel for GPUs of three generations, as a UNet calls them: no GPU is needed for that. Run by ``test_fused_blocks.py``.

The interpreter that runs kernels on a CPU takes more than the compiler: it does not know that a count of one is a constant.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import nn
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from trainer.compute.fused_blocks import elementwise_kernels, group_norm_kernels, layer_norm_kernels

KINDS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
HELPERS = ("_tile", "_group", "_some_tiles", "_before_silu", "_lines", "_halves")  # which kernels call
CAPABILITIES = {torch.float32: 90, torch.bfloat16: 80, torch.float16: 75}  # Turing has no bf16
compiled: dict[Any, int] = {}


class Compiling:
    """Stands in for a kernel: a launch compiles it for the arguments' kinds."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: Any) -> Any:
        def launch(*args: Any, **named: Any) -> None:
            given = {**dict(zip(self.kernel.arg_names, args, strict=False)), **named}
            fixed = {parameter.name: given[parameter.name] for parameter in self.kernel.params if parameter.is_constexpr}
            special = [each.name for each in self.kernel.params if not (each.is_constexpr or each.do_not_specialize)]
            fixed |= {name: 1 for name in special if isinstance(given[name], int) and given[name] == 1}  # as at a real launch
            kinds = {name: "constexpr" if name in fixed else kind_of(given[name]) for name in self.kernel.arg_names}
            capability = CAPABILITIES[next(value.dtype for value in args if isinstance(value, torch.Tensor))]
            key = (self.kernel.__name__, capability, *kinds.items(), *fixed.items())
            if key not in compiled:
                source = ASTSource(fn=self.kernel, signature=kinds, constexprs=fixed)
                compiled[key] = len(triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["ptx"])

        return launch


def kind_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return KINDS[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def reads_whole_words(kernel: Any, kinds: list[str], **constants: Any) -> bool:
    """Whether ``kernel`` reads 16 bytes at once where pointers and counts are multiples of 16, as those of a UNet are."""
    names = kernel.arg_names
    signature = {**dict(zip(names, kinds, strict=False)), **dict.fromkeys(constants, "constexpr")}
    special = [index for index in range(len(kinds)) if not kernel.params[index].do_not_specialize]
    aligned = {(index,): [["tt.divisibility", 16]] for index in special}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return "ld.global.v4" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]


def total(results: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return results[0].sum() + results[1].sum()


def main() -> None:
    """Prints the names of the kernels that were compiled."""
    kernels = {
        name: module
        for module in (group_norm_kernels, layer_norm_kernels, elementwise_kernels)
        for name, value in vars(module).items()
        if isinstance(value, triton.runtime.jit.JITFunction) and name not in HELPERS
    }
    half, block = "*bf16", {"BLOCK": elementwise_kernels._BLOCK}
    vectors = [
        reads_whole_words(elementwise_kernels._geglu_forward, [half, half, "i32", "i32"], **block),
        reads_whole_words(elementwise_kernels._geglu_backward, [half, half, half, "i32", "i32"], **block),
        reads_whole_words(elementwise_kernels._add_bias, [half, half, half, half, "i32", "i32"], **block, BIASED=False),
    ]
    assert all(vectors), vectors
    for name, module in kernels.items():
        setattr(module, name, Compiling(getattr(module, name)))
    for dtype in KINDS:
        for side in (8, 1):
            norm = nn.GroupNorm(4, 48, dtype=dtype).requires_grad_(False)
            given = torch.randn(2, 48, side, side).to(dtype, memory_format=torch.channels_last).requires_grad_()
            for silu in (True, False):
                for shift in (None, torch.randn(2, 48), torch.randn(2, 48).to(dtype)):
                    group_norm_kernels.group_norm(given, norm, silu=silu, shift=shift)[1].sum().backward()
                    total(group_norm_kernels.group_norm(given, norm, silu=silu, shift=shift)).backward()
            elementwise_kernels.add(given, given, norm.bias).sum().backward()
            elementwise_kernels.add(given, given, None).sum().backward()
        for rows in (1, 9):
            lines, wide = nn.LayerNorm(96, dtype=dtype).requires_grad_(False), torch.randn(rows, 96).to(dtype).requires_grad_()
            layer_norm_kernels.layer_norm(wide, None, lines)[1].sum().backward()
            total(layer_norm_kernels.layer_norm(wide, wide, lines)).backward()
            elementwise_kernels.geglu(wide).sum().backward()
    done = {key[0] for key in compiled}
    missing = [name for name in kernels if name not in done]
    print(f"{len(compiled)} variants of {len(done)} kernels; not compiled: {', '.join(missing) or 'none'}")


if __name__ == "__main__":
    main()
