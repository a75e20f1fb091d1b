"""What a run will do and need, worked out before anything heavy is loaded: the dry run and the ``plan`` event."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from . import adapter, events
from .config import RunConfig
from .dataset import Dataset
from .devices import torch_dtype
from .errors import UserError
from .families import Checkpoint, Family, Framing, TextEncoder
from .objective import chosen_prediction, describe
from .sampler import steps_per_epoch
from .text import adapt_text

if TYPE_CHECKING:
    import torch
    from torch import nn

_TOLERANCE = 1.1  # how far the estimate may be off
# What saves memory, in the order of how little it costs.
_THRIFT = (
    'training.precision = "bf16"',
    "training.gradient_checkpointing = true",
    "training.batch_size = 1",
    'network.targets = "attention"',
)
# CUDA context, cuDNN workspaces and allocator rounding; on a CPU, the interpreter with torch and diffusers loaded
_OVERHEAD_GB = 0.8


def make_plan(
    config: RunConfig, dataset: Dataset, family: Family, checkpoint: Checkpoint, device: torch.device, precision: str
) -> events.Plan:
    """The plan of a run. Raises UserError for a configuration that cannot train (no image, no module)."""
    if not dataset.items:
        raise UserError(f"The dataset {dataset.name} holds no images.", "Run Dataset Prep on a folder with images.", kind="dataset")
    sizes = [(item.width, item.height) for item in dataset.items]
    repeats = [item.repeats for item in dataset.items]
    training = config.training
    per_epoch = steps_per_epoch(sizes, repeats, training.batch_size, training.gradient_accumulation)
    steps = total_steps(config, per_epoch)
    buckets: Counter[str] = Counter()
    for (width, height), times in zip(sizes, repeats, strict=True):
        buckets[f"{width}x{height}"] += times
    unet = family.empty_unet(checkpoint)
    settings = family.text_settings(training.max_tokens, training.clip_skip)
    text = family.empty_text_encoder(checkpoint, settings) if config.network.text_encoder else None
    modules: list[str] = []
    with _meta():
        if config.network.unet:
            modules += adapter.adapt(unet, family.lora_targets(unet, config.network.targets), config.network, 0)
        if text is not None:
            modules += adapt_text(text, family, config.network, 0)
    trainable: int = sum(parameter.numel() for model in _models(unet, text) for parameter in adapter.parameters(model))
    largest = max(sizes, key=lambda size: size[0] * size[1])
    return events.Plan(
        images=len(dataset.items),
        buckets=dict(sorted(buckets.items())),
        epochs=-(-steps // per_epoch),
        steps=steps,
        steps_per_epoch=per_epoch,
        trainable_parameters=trainable,
        modules=len(modules),
        family=family.name,
        device=device.type,
        precision=precision,
        prediction=describe(chosen_prediction(family.prediction(checkpoint), config.objective)),
        memory_gb=round(estimate_memory(unet, family, config, largest, torch_dtype(precision), trainable, text), 2),
    )


def require_memory(plan: events.Plan, total_gb: float, again: Callable[[Sequence[str]], float]) -> None:
    """Refuse a run that cannot fit into ``total_gb``, naming the first change that would make it fit.

    ``again`` gives the estimate in GB with some keys changed, ``["training.batch_size = 1"]``. The estimate may be a tenth too high,
    so that much above the memory is still let through. Raises UserError of the kind ``memory``.
    """
    if plan.memory_gb <= total_gb * _TOLERANCE:
        return
    for count in range(1, len(_THRIFT) + 1):
        needed = again(_THRIFT[:count])
        if needed <= total_gb * _TOLERANCE:
            hint = f"It would fit ({needed:.1f} GB) with {', '.join(_THRIFT[:count])}."
            break
    else:
        hint = "No setting makes it fit: prepare the dataset at a smaller resolution, or train on a smaller model or a larger GPU."
    where = "this machine" if plan.device == "cpu" else "the GPU"
    raise UserError(f"This run needs about {plan.memory_gb:.1f} GB of memory, and {where} has {total_gb:.1f} GB.", hint, kind="memory")


def savings(plan: events.Plan, again: Callable[[Sequence[str]], float]) -> list[tuple[str, float]]:
    """The changes that would save memory, each alone, with the estimate in GB that is left, the most helpful first. ``again`` as above."""
    left = [(change, again([change])) for change in _THRIFT]
    return sorted(((change, needed) for change, needed in left if needed < plan.memory_gb - 0.01), key=lambda pair: pair[1])


def total_steps(config: RunConfig, per_epoch: int) -> int:
    """Optimiser steps of the whole run: epochs times steps per epoch, or ``max_steps`` if that is set and smaller."""
    steps = config.training.epochs * per_epoch
    return min(steps, config.training.max_steps) if config.training.max_steps else steps


def estimate_memory(
    unet: nn.Module,
    family: Family,
    config: RunConfig,
    size: tuple[int, int],
    dtype: torch.dtype,
    trainable: int,
    text: TextEncoder | None = None,
) -> float:
    """Peak memory of a training step in GB: weights, LoRA with gradients and two Adam moments, and the activations that
    the backward pass needs, counted by running the models (already with LoRA, on the meta device) on shapes alone.

    ``text`` are the text encoders where they are trained; else they have left memory when the UNet comes.
    """
    frozen: int = sum(p.numel() for model in _models(unet, text) for p in model.parameters() if not p.requires_grad)
    activations = _saved_bytes(unet, family, config, size, dtype, text)
    bytes_each = 20 if config.training.ema_decay else 16  # the average is one more fp32 copy
    return (frozen * dtype.itemsize + trainable * bytes_each + activations) / 1e9 + _OVERHEAD_GB


def _models(unet: Any, text: TextEncoder | None) -> list[Any]:
    return [unet, *(text.modules.values() if text is not None else ())]


def _saved_bytes(unet: Any, family: Family, config: RunConfig, size: tuple[int, int], dtype: torch.dtype, text: TextEncoder | None) -> int:
    import torch

    batch, models = config.training.batch_size, _models(unet, text)
    if config.training.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        for model in models[1:]:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    weights: set[int] = set()
    for model in models:
        trained = {id(parameter) for parameter in adapter.parameters(model)}
        model.train()
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.float32 if id(parameter) in trained else dtype)
            weights.add(id(parameter))
    conditions, framings = [family.empty_condition(unet, config.training.max_tokens)] * batch, [Framing(original=size, target=size)] * batch
    latents = torch.empty(batch, int(unet.config.in_channels), size[1] // 8, size[0] // 8, device="meta", dtype=dtype)
    seen: set[int] = set()
    kept: list[torch.Tensor] = []  # holding them keeps their ids unique
    total = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        whole = tensor if tensor._base is None else tensor._base  # a view keeps all of what it looks at
        if id(whole) not in seen and id(whole) not in weights:
            seen.add(id(whole))
            kept.append(whole)
            total += whole.numel() * whole.element_size()
        return tensor

    timesteps = torch.zeros(batch, device="meta", dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), _flash_attention():
        if text is not None:
            ids = torch.zeros(config.training.max_tokens // 75, 77, device="meta", dtype=torch.int64)
            conditions = text.conditions([dict.fromkeys(text.modules, ids)] * batch)
        inputs = family.unet_inputs(conditions, framings, torch.device("meta"), dtype)
        unet(latents, timesteps, **inputs, return_dict=False)
    return total


def _flash_attention() -> Any:
    """A mode in which scaled_dot_product_attention keeps q, k, v, its result and a number a row only, as the fused kernels do.

    On the meta device torch would count the attention matrix of its reference path instead.
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


def _meta() -> Any:
    import torch

    return torch.device("meta")
