"""The memory that a training step needs, worked out from shapes alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..adapters import adapter
from ..compute.denoiser_setup import blocks
from ..compute.text_checkpointing import set_text_checkpointing
from ..config.run_config import RunConfig
from ..families import Family, Framing, TextEncoder

if TYPE_CHECKING:
    import torch
    from torch import nn

# CUDA context, cuDNN workspaces and allocator rounding; on a CPU, the interpreter with torch and diffusers
OVERHEAD_GB = 0.8
_MOMENTS = {"adamw": 8, "lion": 4, "prodigy": 16, "schedule-free": 8}  # bytes per trained weight, in fp32 tensors of its size
_BLOCK_8BIT = 256  # bitsandbytes keeps one fp32 scale for this many weights of each moment
_SMALLEST_8BIT = 4096  # bitsandbytes keeps smaller tensors in fp32


def models_of(unet: Any, text: TextEncoder | None) -> list[Any]:
    """The models that a step runs."""
    return [unet, *(text.modules.values() if text is not None else ())]


def memory_needed(
    unet: nn.Module,
    family: Family,
    config: RunConfig,
    size: tuple[int, int],
    dtype: torch.dtype,
    text: TextEncoder | None = None,
    counted: dict[Any, tuple[int, int]] | None = None,
) -> dict[str, float]:
    """Peak memory in GB of a training step on images of ``size`` (width, height), by purpose.

    ``unet``, and ``text`` if it is trained (else it has left memory before the UNet is loaded), are on the meta device, quantised and with
    LoRA as in the run. ``base``: the frozen weights; ``lora``: weights and gradients in fp32 and their copies in ``dtype``; ``optimizer``:
    its state; ``activations``: what the backward pass needs, counted by running the UNet on the meta device, and the largest quantised
    weight once it is dequantised; ``overhead``: a constant. ``counted`` caches forward passes between calls with the same models,
    ``family`` and ``dtype``.
    """
    models = models_of(unet, text)
    trained = [parameter for model in models for parameter in adapter.parameters(model)]
    count = sum(parameter.numel() for parameter in trained)
    frozen = sum(p.numel() for model in models for p in model.parameters() if not p.requires_grad)
    average = 4 * count if config.training.ema_decay else 0  # an fp32 copy
    copies = dtype.itemsize if dtype.itemsize < 4 else 0
    counted = {} if counted is None else counted
    needed = {
        "base": frozen * dtype.itemsize + sum(buffer.nbytes for buffer in unet.buffers()),
        "lora": count * (8 + copies),
        "optimizer": average + sum(state_bytes(parameter.shape, config.optimizer.name) for parameter in trained),
        "activations": _saved_bytes(unet, family, config, size, dtype, text, counted) + _largest_unpacked(unet) * (4 + dtype.itemsize),
    }
    return {**{name: value / 1e9 for name, value in needed.items()}, "overhead": OVERHEAD_GB}


def _at_once(config: RunConfig) -> int:
    """Images in one forward pass."""
    return min(config.training.micro_batch_size or config.training.batch_size, config.training.batch_size)


def state_bytes(shape: torch.Size, optimizer: str) -> int:
    """Bytes of state that ``optimizer`` (a value of ``optimizer.name``) keeps for a trained tensor of ``shape``."""
    count = math.prod(shape)
    if optimizer == "adafactor":  # a sum for each row and each column
        return 4 * (math.prod(shape[:-1]) + math.prod(shape[:-2]) * shape[-1]) if len(shape) > 1 else 4 * count
    if optimizer == "adamw8bit":
        return 8 * count if count < _SMALLEST_8BIT else 2 * (count + 4 * -(-count // _BLOCK_8BIT))
    return _MOMENTS[optimizer] * count


def _largest_unpacked(unet: nn.Module) -> int:
    return max((math.prod(module.shape) for module in unet.modules() if hasattr(module, "codes")), default=0)  # type: ignore[arg-type]


def _saved_bytes(
    unet: Any,
    family: Family,
    config: RunConfig,
    size: tuple[int, int],
    dtype: torch.dtype,
    text: TextEncoder | None,
    counted: dict[Any, tuple[int, int]],
) -> int:
    """Bytes kept for the backward pass; with checkpointing, those between blocks and those of the largest block, which is recomputed."""
    models = models_of(unet, text)
    for model in models:
        model.train()
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)  # autocast computes with the trained ones in it, too

    def forward_bytes(checkpointed: bool) -> tuple[int, int]:
        key = (size, _at_once(config), config.training.max_tokens, checkpointed)
        if key not in counted:
            _checkpoint(unet, models[1:], checkpointed)
            counted[key] = _forward_bytes(unet, family, config, size, dtype, text)
        return counted[key]

    kept, largest = forward_bytes(False)
    return forward_bytes(True)[0] + largest if config.training.gradient_checkpointing else kept


def _checkpoint(unet: Any, text: list[Any], wanted: bool) -> None:
    if wanted:
        unet.enable_gradient_checkpointing()
    else:
        unet.disable_gradient_checkpointing()
    for model in text:
        set_text_checkpointing(model, wanted)


def _forward_bytes(
    unet: Any, family: Family, config: RunConfig, size: tuple[int, int], dtype: torch.dtype, text: TextEncoder | None
) -> tuple[int, int]:
    """Bytes that a forward pass keeps for the backward pass: of all blocks, and of the block that keeps most."""
    import torch

    training, batch = config.training, _at_once(config)
    conditions, framings = [family.empty_condition(unet, training.max_tokens)] * batch, [Framing(original=size, target=size)] * batch
    latents = torch.empty(batch, *family.latents.shape(*size), device="meta", dtype=dtype)
    seen: set[int] = set()
    kept: list[torch.Tensor] = []  # while they are alive, no other tensor gets their ids
    weights = {id(tensor) for model in models_of(unet, text) for tensor in (*model.parameters(), *model.buffers())}
    total = largest = 0
    before: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        whole = tensor if tensor._base is None else tensor._base  # a view keeps its whole base alive
        if id(whole) not in seen and id(whole) not in weights:
            seen.add(id(whole))
            kept.append(whole)
            total += whole.numel() * whole.element_size()
        return tensor

    def enter(block: nn.Module, _: Any) -> None:
        before[id(block)] = total

    def leave(block: nn.Module, *_: Any) -> None:
        nonlocal largest
        largest = max(largest, total - before[id(block)])

    hooks = [hook for block in blocks(unet) for hook in (block.register_forward_pre_hook(enter), block.register_forward_hook(leave))]
    timesteps = torch.zeros(batch, device="meta", dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), _flash_attention(), _remembered_shapes():
        if text is not None:
            conditions = text.conditions([text.longest_input()] * batch)
        inputs = family.denoiser_inputs(conditions, framings, torch.device("meta"), dtype)
        unet(latents, timesteps, **inputs, return_dict=False)
    for hook in hooks:
        hook.remove()
    return total, largest


def _remembered_shapes() -> Any:
    """A mode that caches the output shapes of operators whose meta implementation is slow Python: the blocks of a UNet repeat."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    aten = torch.ops.aten
    slow = (aten.addmm.default, aten.native_layer_norm.default, aten.native_group_norm.default, aten.gelu.default)

    known: dict[Any, Any] = {}

    def kind(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return tuple(value.shape), value.stride(), value.dtype
        return tuple(value) if isinstance(value, list) else value

    def empty(of: tuple[Any, Any, Any]) -> torch.Tensor:
        shape, stride, dtype = of
        return torch.empty_strided(shape, stride, dtype=dtype, device="meta")

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is aten.addmm_.default:
                return args[0]
            if func not in slow or kwargs:
                return func(*args, **(kwargs or {}))
            key = (func, *map(kind, args))
            if key not in known:
                result = func(*args)
                known[key] = [kind(each) for each in result] if isinstance(result, tuple) else kind(result)
                return result
            output = known[key]
            return tuple(map(empty, output)) if isinstance(output, list) else empty(output)

    return Mode()  # type: ignore[no-untyped-call]


def _flash_attention() -> Any:
    """A mode in which scaled_dot_product_attention keeps only q, k, v, its result and one number per row, as fused kernels do.

    On the meta device torch runs its reference implementation, which would also keep the attention matrix.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class Fused(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            result = torch.empty_like(query)
            sums = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)  # log-sum-exp of each row
            ctx.save_for_backward(query, key, value, result, sums)
            return result

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.nn.functional.scaled_dot_product_attention:
                kwargs = kwargs or {}
                query, key, value = (args[i] if i < len(args) else kwargs[n] for i, n in enumerate(("query", "key", "value")))
                return Fused.apply(query, key, value)  # type: ignore[no-untyped-call]
            return func(*args, **(kwargs or {}))

    return Mode()
