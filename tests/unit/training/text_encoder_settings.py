"""Settings of short runs that train text encoders."""

from __future__ import annotations

from typing import Any

import torch

CPU = torch.device("cpu")
QUICK: dict[str, Any] = {"network.text_encoder": True, "training.max_steps": 3, "optimizer.lr": 0.02, "network.targets": "attention"}


def of_text(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith("te")}
