"""LoRA on a denoiser and on text encoders: puts in the layers (lora_layers.py, dora_layers.py), names modules, reads and sets weights.

Each module has a pair of matrices, with DoRA also a magnitude for each output. Several models are passed as one: see ``as_one_model``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config.sections.network import NetworkSection
from ..core.errors import UserError
from ..core.messages import Message, Setting

if TYPE_CHECKING:
    import torch
    from torch import nn

_TEXT_COMPONENTS = ("te1", "te2", "adapter")  # with which the names of the text models' modules begin
_CLIP_ROOTS = ("encoder.", "embeddings.", "final_layer_norm")


@dataclass(frozen=True)
class Pair:
    """The trained tensors of one module: ``down`` (rank, in, ...), ``up`` (out, rank, ...), DoRA's ``magnitude`` (out entries);
    fp32 parameters. The module acts as ``scale`` times ``up`` times ``down``."""

    module: str
    down: torch.nn.Parameter
    up: torch.nn.Parameter
    magnitude: torch.nn.Parameter | None = None
    scale: float = 1.0  # alpha / rank, or alpha / sqrt(rank) with rank stabilisation

    @property
    def component(self) -> str:
        """The model that the module belongs to."""
        return component_of(self.module)

    @property
    def tensors(self) -> dict[str, torch.nn.Parameter]:
        """The parameters by their names in ``state``."""
        named = {f"{self.module}.down": self.down, f"{self.module}.up": self.up}
        return named if self.magnitude is None else {**named, f"{self.module}.magnitude": self.magnitude}


def as_one_model(unet: nn.Module, text: Mapping[str, nn.Module]) -> nn.Module:
    """One model of ``unet``, the denoiser, and the text models ``te1``, ``te2`` and ``adapter``, for the functions below.

    A denoiser's modules have the names that they have in the denoiser alone. A text model's are ``te1.text_model.encoder.layers.…`` in
    every version of transformers.
    """
    from torch import nn

    return nn.ModuleDict({"unet": unet, **text})


def adapt(
    unet: nn.Module, modules: Sequence[str], network: NetworkSection, seed: int, in_settings: Callable[[str], str] = str
) -> list[str]:
    """``inject`` with the rank and alpha of each of ``modules`` in ``network``; returns the modules that are trained.

    ``in_settings`` gives the name that ``network.block_ranks`` has for a module. Raises UserError when there are none.
    """
    groups: dict[tuple[int, float], list[str]] = {}
    for name in modules:
        size = network.size_of(in_settings(name), getattr(unet.get_submodule(name), "kernel_size", ()))
        if size[0]:
            groups.setdefault(size, []).append(name)
    if not groups:
        raise UserError(
            Message(Setting("network.block_ranks"), " leaves nothing to train."),
            "Set a rank above 0 for at least one part of the model.",
            kind="config",
        )
    more: dict[str, Any] = {"dropout": network.dropout, "rslora": network.rslora, "dora": network.dora}
    for (rank, alpha), names in groups.items():
        inject(unet, names, rank=rank, alpha=alpha, seed=seed, **more)
    return [name for names in groups.values() for name in names]


def inject(
    unet: nn.Module,
    modules: Sequence[str],
    *,
    rank: int,
    alpha: float,
    seed: int,
    dropout: float = 0.0,
    rslora: bool = False,
    dora: bool = False,
) -> None:
    """Wrap ``modules`` of ``unet`` with LoRA layers in fp32: down Kaiming-uniform from ``seed``, up zero, scale alpha / rank.

    As in kohya's trainer and the LoRA paper (Hu et al. 2021, section 4.1), training starts exactly at the base, which is frozen. With
    ``rslora`` the scale is alpha / sqrt(rank). ``dropout`` is the share of a module's inputs that LoRA does not see in a step.
    """
    import torch

    from ..compute.lora_layers import with_lora
    from .dora_layers import with_dora

    wrap: Any = with_dora if dora else with_lora
    wanted, scale = set(modules), alpha / (math.sqrt(rank) if rslora else rank)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in [name for name, _ in unet.named_modules() if name in wanted]:
            parent, _, last = name.rpartition(".")
            base = unet.get_submodule(name)
            setattr(unet.get_submodule(parent), last, wrap(base, rank, scale, dropout).to(_device(base)))
    for name, parameter in unet.named_parameters():
        if "lora_" not in name:
            parameter.requires_grad_(False)


def _device(layer: nn.Module) -> torch.device:
    return next(itertools.chain(layer.parameters(), layer.buffers())).device


def pairs(unet: nn.Module) -> Iterator[Pair]:
    """The LoRA matrices in module order."""
    from ..compute.lora_layers import LoraLayer

    for name, module in unet.named_modules():
        if isinstance(module, LoraLayer):
            magnitude = getattr(module, "lora_magnitude", None)
            component, _, inside = name.partition(".")
            known = standard_name(component, inside) if component in ("unet", *_TEXT_COMPONENTS) else name
            yield Pair(known, module.lora_A.weight, module.lora_B.weight, magnitude, float(module.scale))


def parameters(unet: nn.Module) -> list[torch.nn.Parameter]:
    """The trained parameters, in a fixed order."""
    return [parameter for pair in pairs(unet) for parameter in pair.tensors.values()]


def state(unet: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the LoRA weights on the CPU by module name, ``<module>.down`` and ``<module>.up``, with
    DoRA also ``<module>.magnitude``."""
    named = (item for pair in pairs(unet) for item in pair.tensors.items())
    return {name: parameter.detach().to("cpu", copy=True).contiguous() for name, parameter in named}


def load_state(unet: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Set the weights to what ``state`` returned. Raises KeyError or RuntimeError when that belongs to another configuration."""
    import torch

    with torch.no_grad():
        for pair in pairs(unet):
            for name, parameter in pair.tensors.items():
                parameter.copy_(tensors[name])


def all_finite(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether there is no NaN and no infinity."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def component_of(name: str) -> str:
    """The model of a module, by its name in states."""
    component = name.partition(".")[0]
    return component if component in _TEXT_COMPONENTS else "unet"


def standard_name(component: str, module: str) -> str:
    """The name in states and settings of a module of a model: ``component`` is its name in ``as_one_model``."""
    if component == "unet":
        return module
    if module.startswith(_CLIP_ROOTS):  # transformers 5.6 removed text_model
        return f"{component}.text_model.{module}"
    return f"{component}.{module}"
