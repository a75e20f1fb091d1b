"""LoRA on a UNet: peft puts the layers in, this names the modules and hands out the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

_ADAPTER = "default"


@dataclass(frozen=True)
class Pair:
    """The two trained matrices of one module: ``down`` (rank, in, ...), ``up`` (out, rank, ...); fp32 parameters."""

    module: str
    down: torch.nn.Parameter
    up: torch.nn.Parameter


def inject(unet: nn.Module, modules: Sequence[str], *, rank: int, alpha: float, seed: int) -> None:
    """Wrap ``modules`` of ``unet`` with LoRA layers in fp32: down Kaiming-uniform from ``seed``, up zero, scale alpha / rank.

    As in kohya's trainer and the LoRA paper (Hu et al. 2021, section 4.1), training starts at the base exactly.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(
            LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(modules), init_lora_weights=True),
            unet,
            adapter_name=_ADAPTER,
        )
    for pair in pairs(unet):
        for parameter in (pair.down, pair.up):
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)


def pairs(unet: nn.Module) -> Iterator[Pair]:
    """The LoRA matrices in module order."""
    from torch import nn

    for name, module in unet.named_modules():
        downs = getattr(module, "lora_A", None)
        ups = getattr(module, "lora_B", None)
        if isinstance(downs, nn.ModuleDict) and isinstance(ups, nn.ModuleDict) and _ADAPTER in downs:
            yield Pair(name, _weight(downs[_ADAPTER]), _weight(ups[_ADAPTER]))


def parameters(unet: nn.Module) -> list[torch.nn.Parameter]:
    """What the optimiser trains, in a fixed order."""
    return [parameter for pair in pairs(unet) for parameter in (pair.down, pair.up)]


def state(unet: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the LoRA weights on the CPU by diffusers module name, ``<module>.down`` and ``<module>.up``."""
    tensors: dict[str, torch.Tensor] = {}
    for pair in pairs(unet):
        tensors[f"{pair.module}.down"] = pair.down.detach().to("cpu", copy=True).contiguous()
        tensors[f"{pair.module}.up"] = pair.up.detach().to("cpu", copy=True).contiguous()
    return tensors


def load_state(unet: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put back what ``state`` gave. Raises KeyError or RuntimeError when it belongs to another configuration."""
    import torch

    with torch.no_grad():
        for pair in pairs(unet):
            pair.down.copy_(tensors[f"{pair.module}.down"])
            pair.up.copy_(tensors[f"{pair.module}.up"])


def _weight(layer: nn.Module) -> torch.nn.Parameter:
    from torch import nn

    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    return weight
