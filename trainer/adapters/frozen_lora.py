"""Those parts of ``base.lora``, the LoRA file that a run starts from, which the run does not train.

They change the frozen models during training, and they are written into the new file unchanged. Without that, the other parts would be
trained for a model that lacks them, and so would the new file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.run_config import RunConfig
from ..core.errors import UserError
from ..core.messages import Message, Setting, join_messages

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..lorafile import LoraModule

_PARTS = {"unet": "UNet", "te1": "text encoder", "te2": "second text encoder", "adapter": "text adapter"}
_ADDED = ("lora", "loha", "lokr", "full")


def frozen_modules(config: RunConfig) -> list[LoraModule]:
    """The layers of ``base.lora`` that belong to models which ``config`` does not train; empty without a file.

    Raises UserError for a layer whose weight change cannot be computed.
    """
    if not config.base.lora:
        return []
    from ..lorafile import read_lora
    from ..lorafile.biases import bias_of

    path = Path(config.base.lora)
    modules = [module for module in read_lora(path) if not config.trains(module.component)]
    for module in modules:
        if module.algorithm not in _ADDED or bias_of(module) is not None:
            raise UserError(
                f"{path.name} does not fit this run: the change of its layer {module.name} ({module.algorithm}) cannot be computed here, "
                f"and the {_PARTS[module.component]}, to which it belongs, is not trained.",
                Message("Train it (", _setting(module.component), "), or remove that part from the file."),
                kind="lora",
            )
    return modules


def describe_frozen(config: RunConfig, modules: Sequence[LoraModule]) -> str:
    """A message about ``frozen_modules``; empty without any."""
    if not modules:
        return ""
    components = dict.fromkeys(module.component for module in modules)
    parts = " and ".join(f"the {_PARTS[component]} ({sum(m.component == component for m in modules)} layers)" for component in components)
    off = join_messages(" and ", dict.fromkeys(_setting(component) for component in components))
    return Message(
        f"{Path(config.base.lora).name} also changes {parts}, which this run does not train",
        " (",
        off,
        " is off). That part acts during training and is written unchanged into the new file.",
    )


def merge_into(models: Mapping[str, nn.Module], modules: Sequence[LoraModule], strength: float = 1.0) -> None:
    """Add the changes of ``modules``, times ``strength``, to the weights of ``models`` (``unet``, ``te1``, ``te2``), each computed in fp32.

    Raises UserError for a layer that its model does not have, or has in another size.
    """
    import torch

    from ..lorafile.algorithms.dora import apply_dora

    for module in modules:
        model = models.get(module.component)
        if model is None:
            raise _unfit(module, "the model has no such part")
        # transformers 5.6 removed "text_model." from the names in CLIPTextModel
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
            changed = weight.float() + delta if scale is None else apply_dora(weight, delta, scale.to(weight.device))
            weight.copy_(changed if strength == 1 else torch.lerp(weight.float(), changed, strength))


def tensors_of(family: str, modules: Sequence[LoraModule]) -> dict[str, torch.Tensor]:
    """The tensors of ``modules`` under kohya's keys, unchanged; formats without alphas get alphas that mean a scale of 1."""
    from ..lorafile import LoraWeights, to_kohya

    return to_kohya(LoraWeights(tuple(modules), family, "kohya")).tensors


def _setting(component: str) -> Setting:
    return Setting({"unet": "network.unet", "adapter": "optimizer.text_adapter_lr"}.get(component, "network.text_encoder"))


def _unfit(module: LoraModule, reason: str) -> UserError:
    return UserError(
        f"The LoRA to start from does not fit this run: its layer {module.name} of the {_PARTS[module.component]}: {reason}.",
        "Was it made for another kind of checkpoint?",
        kind="lora",
    )
