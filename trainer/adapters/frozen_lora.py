"""The parts of a LoRA file to go on from that a run does not train: they act on the frozen models, and stay in the file that is written.

Left out, they would be lost twice: the rest would be trained for a model without them, and the new file would lack them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.run_config import RunConfig
from ..core.errors import UserError
from ..core.messages import Setting

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..lorafile import LoraModule

_PARTS = {"unet": "UNet", "te1": "text encoder", "te2": "second text encoder"}
_ADDED = ("lora", "loha", "lokr", "full")


def frozen_modules(config: RunConfig) -> list[LoraModule]:
    """The layers of ``base.lora`` that belong to models which ``config`` does not train; empty without such a file.

    Raises UserError for layers whose change cannot be computed.
    """
    if not config.base.lora:
        return []
    from ..lorafile import read_lora
    from ..lorafile.biases import bias_of

    path, network = Path(config.base.lora), config.network
    modules = [module for module in read_lora(path) if not (network.unet if module.component == "unet" else network.text_encoder)]
    for module in modules:
        if module.algorithm not in _ADDED or bias_of(module) is not None:
            raise UserError(
                f"{path.name} does not fit this run: the change of its layer {module.name} ({module.algorithm}) cannot be computed here, "
                f"and the {_PARTS[module.component]}, to which it belongs, is not trained.",
                f"Set {_setting(module.component)} to true, or take that part out of the file.",
                kind="lora",
            )
    return modules


def describe_frozen(config: RunConfig, modules: Sequence[LoraModule]) -> str:
    """A sentence about ``frozen_modules``; empty without any."""
    if not modules:
        return ""
    components = dict.fromkeys(module.component for module in modules)
    parts = " and ".join(f"the {_PARTS[component]} ({sum(m.component == component for m in modules)} layers)" for component in components)
    settings = " and ".join(dict.fromkeys(_setting(component) for component in components))
    return (
        f"{Path(config.base.lora).name} also changes {parts}, which this run does not train ({settings} is off). "
        "That part acts during training and is written unchanged into the new file."
    )


def merge_into(models: Mapping[str, nn.Module], modules: Sequence[LoraModule]) -> None:
    """Add the changes of ``modules`` to the weights of ``models`` (``unet``, ``te1``, ``te2``), each computed in fp32.

    Raises UserError for a layer that its model has not, or of another size.
    """
    import torch

    from ..lorafile.algorithms.dora import apply_dora

    for module in modules:
        model = models.get(module.component)
        if model is None:
            raise _unfit(module, "the model has no such part")
        # transformers 5.6 dropped "text_model." from the names of CLIPTextModel
        name = module.name if hasattr(model, "text_model") else module.name.removeprefix("text_model.")
        try:
            weight = model.get_submodule(name).weight
        except AttributeError:
            raise _unfit(module, "the model has no such layer") from None
        assert isinstance(weight, torch.Tensor)
        delta = module.delta().to(weight.device)
        if delta.numel() != weight.numel() or delta.shape[0] != weight.shape[0]:
            raise _unfit(module, f"its change is {list(delta.shape)}, the model's layer {list(weight.shape)}")
        delta = delta.reshape(weight.shape)
        scale = module.tensors.get("dora_scale")
        with torch.no_grad():
            weight.copy_(weight.float() + delta if scale is None else apply_dora(weight, delta, scale.to(weight.device)))


def tensors_of(family: str, modules: Sequence[LoraModule]) -> dict[str, torch.Tensor]:
    """``modules`` under kohya's keys, as they were read; those of a format without alphas get one (scale 1)."""
    from ..lorafile import LoraWeights, to_kohya

    return to_kohya(LoraWeights(tuple(modules), family, "kohya")).tensors


def _setting(component: str) -> Setting:
    return Setting("network.unet" if component == "unet" else "network.text_encoder")


def _unfit(module: LoraModule, reason: str) -> UserError:
    return UserError(
        f"The LoRA to go on from does not fit this run: its layer {module.name} of the {_PARTS[module.component]}: {reason}.",
        "Was it made for another kind of checkpoint?",
        kind="lora",
    )
