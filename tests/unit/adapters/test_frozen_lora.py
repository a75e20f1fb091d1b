"""Parts of the LoRA to start from that a run does not train."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from trainer.adapters.frozen_lora import describe_frozen, frozen_modules, merge_into
from trainer.config.run_config import RunConfig
from trainer.core.errors import UserError
from trainer.lorafile import LoraModule, LoraWeights, convert, write_lora


def lora_with_adapter(path: Path, adapter_rate: float = 0.0) -> RunConfig:
    """A run that starts from an Anima LoRA with a layer of the transformer and one of the text adapter."""
    names = {"unet": "transformer_blocks.0.attn1.to_q", "adapter": "blocks.0.mlp.0"}
    modules = []
    for component, name in names.items():
        tensors = {"lora_up.weight": torch.ones(2048, 1), "lora_down.weight": torch.ones(1, 2048)}
        modules.append(LoraModule(component, name, "lora", tensors, torch.tensor(1.0)))
    write_lora(path, convert(LoraWeights(tuple(modules), "anima", "kohya"), "kohya"))
    base = {"checkpoint": "base.safetensors", "lora": str(path)}
    network, optimizer = {"text_encoder": True}, {"text_adapter_lr": adapter_rate}
    return RunConfig.model_validate({"base": base, "dataset": {"path": "dataset"}, "network": network, "optimizer": optimizer})


def test_a_text_adapter_that_is_not_trained_is_reported(tmp_path: Path) -> None:
    config = lora_with_adapter(tmp_path / "anima.safetensors")
    modules = frozen_modules(config)
    assert [(module.component, module.name) for module in modules] == [("adapter", "blocks.0.mlp.0")]
    message = describe_frozen(config, modules)
    assert "the text adapter (1 layers), which this run does not train (optimizer.text_adapter_lr is off). That part acts" in message
    assert frozen_modules(lora_with_adapter(tmp_path / "anima.safetensors", adapter_rate=1e-4)) == []


def test_a_model_without_text_adapter_is_refused(tmp_path: Path) -> None:
    modules = frozen_modules(lora_with_adapter(tmp_path / "anima.safetensors"))
    with pytest.raises(UserError, match="of the text adapter: the model has no such part"):
        merge_into({"unet": nn.Linear(1, 1)}, modules)
