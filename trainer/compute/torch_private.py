"""Every private API of torch that the accelerations use, in one place.

Each worked in the versions of torch in ``TRIED``. An acceleration whose APIs are missing, in an older or newer torch, is left out, and the
user is warned: see ``accelerations.py``. Import nothing of torch at the top: planning looks here before torch is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

MISSING_OPERATOR = (RuntimeError, NotImplementedError, AttributeError, TypeError)  # raised by an operator that is not there, or differs
TRIED = ("2.13.0", "2.14.1")

APIS: dict[str, tuple[str, ...]] = {  # by the acceleration that cannot do without
    "onednn": (
        "ops.mkldnn._convolution_pointwise",
        "ops.mkldnn._convolution_transpose_pointwise",
        "ops.mkldnn._linear_pointwise",
        "ops.mkldnn._reorder_convolution_weight",
        "ops.mkldnn._reorder_convolution_transpose_weight",
        "ops.mkldnn._reorder_linear_weight",
        "ops.mkldnn._get_mkldnn_serialized_md",
    ),
    "cpu_attention": (
        "ops.aten._scaled_dot_product_flash_attention_for_cpu",
        "ops.aten._scaled_dot_product_flash_attention_for_cpu_backward",
    ),
    "cosmos_blocks": ("ops.aten.native_layer_norm_backward",),
    "compiled_blocks": ("_dynamo.config.cache_size_limit", "nn.Module._compiled_call_impl"),
    "cuda_graphs": ("_foreach_copy_", "_foreach_add_", "_foreach_norm"),
}


def missing(acceleration: str) -> list[str]:
    """The APIs that ``acceleration`` needs and this torch does not have, as ``torch.…``."""
    return [f"torch.{path}" for path in APIS.get(acceleration, ()) if not _exists(path)]


def _exists(path: str) -> bool:
    import torch

    found: Any = torch
    for name in path.split("."):
        if name == "_dynamo":
            import torch._dynamo
        try:
            found = getattr(found, name)
        except (AttributeError, RuntimeError):  # an operator's namespace raises either
            return False
    return True


# CUDA graphs


def foreach_copy(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    """Copy every tensor of ``sources`` into its one of ``targets``, in few kernels."""
    import torch

    torch._foreach_copy_(list(targets), list(sources))


def foreach_add(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    """Add every tensor of ``sources`` to its one of ``targets``, in few kernels."""
    import torch

    torch._foreach_add_(list(targets), list(sources))


def foreach_norm(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The norm of each tensor, in few kernels."""
    import torch

    return list(torch._foreach_norm(list(tensors)))


def end_allocation_to_pool(pool: Any) -> None:
    """Tell the allocator that a recording into ``pool`` has ended. Only needed after a failure; may raise, as the name may be missing."""
    import torch

    torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)


# compiled blocks


def allow_recompiles(count: int) -> None:
    """Let torch.compile keep at least ``count`` versions of one function."""
    import torch._dynamo

    torch._dynamo.config.cache_size_limit = max(count, torch._dynamo.config.cache_size_limit)


def compiled_call(module: nn.Module) -> Any:
    """What ``module.compile()`` set; None where the module runs eagerly."""
    return module._compiled_call_impl


def set_compiled_call(module: nn.Module, call: Any) -> None:
    """Make ``module`` run ``call`` in place of its ``forward``; None: eagerly."""
    module._compiled_call_impl = call


# attention on a CPU


def flash_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of (batch, heads, tokens, channels) and the logarithms of its sums, (batch, heads, tokens)."""
    import torch

    mixed, log_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, False)
    return mixed, log_sums


def flash_attention_backward(gradient: torch.Tensor, *saved: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Gradients of query, key and value; ``saved``: query, key, value, result and logarithms of the sums."""
    import torch

    gradients: tuple[torch.Tensor, ...] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(gradient, *saved, 0.0, False)
    return gradients


# blocks in few operations


def layer_norm_input_gradient(
    gradient: torch.Tensor, inputs: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor, weight: torch.Tensor | None
) -> torch.Tensor:
    """The gradient of the inputs (..., width) of ``torch.native_layer_norm``, which returned ``mean`` and the inverse ``deviation``."""
    import torch

    backward = torch.ops.aten.native_layer_norm_backward
    by_inputs: torch.Tensor = backward(gradient, inputs, [inputs.shape[-1]], mean, deviation, weight, weight, [True, False, False])[0]
    return by_inputs


# oneDNN's layouts of weights on a CPU. Inputs are plain, weights as ``reorder_…`` returned them; padding, stride, dilation as lists.


def reorder_convolution(weight: torch.Tensor, padding: Any, stride: Any, dilation: Any, groups: int, shape: Sequence[int]) -> torch.Tensor:
    """``weight`` (out, in, h, w) for inputs of ``shape``."""
    import torch

    result: torch.Tensor = torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, groups, list(shape))
    return result


def convolution(
    inputs: torch.Tensor, weight: Any, bias: torch.Tensor | None, padding: Any, stride: Any, dilation: Any, groups: int
) -> torch.Tensor:
    """A convolution with a reordered weight."""
    import torch

    operator = torch.ops.mkldnn._convolution_pointwise
    result: torch.Tensor = operator(inputs, weight, bias, padding, stride, dilation, groups, "none", [], "")
    return result


def reorder_transposed_convolution(
    weight: torch.Tensor, padding: Any, output_padding: Any, stride: Any, dilation: Any, groups: int, shape: Sequence[int]
) -> torch.Tensor:
    """``weight`` (out, in, h, w) for a transposed convolution of inputs of ``shape`` (batch, out, h, w)."""
    import torch

    operator = torch.ops.mkldnn._reorder_convolution_transpose_weight
    result: torch.Tensor = operator(weight, padding, output_padding, stride, dilation, groups, list(shape))
    return result


def transposed_convolution(
    inputs: torch.Tensor, weight: Any, bias: torch.Tensor | None, padding: Any, output_padding: Any, stride: Any, dilation: Any, groups: int
) -> torch.Tensor:
    """A transposed convolution with a reordered weight."""
    import torch

    operator = torch.ops.mkldnn._convolution_transpose_pointwise
    result: torch.Tensor = operator(inputs, weight, bias, padding, output_padding, stride, dilation, groups, "none", [], "")
    return result


def reorder_linear(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """``weight`` (out, in) for inputs of so many ``rows``."""
    import torch

    result: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return result


def linear(inputs: torch.Tensor, weight: Any, bias: torch.Tensor | None) -> torch.Tensor:
    """A matrix product with a reordered weight."""
    import torch

    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return result


def weight_layout(weight: torch.Tensor) -> bytes:
    """oneDNN's description of the layout of a reordered weight. Equal layouts have equal descriptions.

    It begins with a flag of one byte and three bytes of padding, which PyTorch's Windows build does not initialise.
    """
    import torch

    description = torch.ops.mkldnn._get_mkldnn_serialized_md(weight).numpy().tobytes()
    return bytes(description[:1] + description[4:])
