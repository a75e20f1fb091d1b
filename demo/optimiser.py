"""Muon for the matrices and convolutions, AdamW for everything else.

Muon (Keller Jordan, 2024) replaces each matrix's momentum by the nearest semi-orthogonal matrix, found by
five Newton-Schulz steps. The update is scaled by ``0.2 * sqrt(max(rows, columns))`` so that its root mean
square, and with it the learning rate, is that of AdamW (Liu et al., "Muon is Scalable for LLM Training", 2025).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Approximate U V^T of ``matrix`` = U S V^T, (rows, columns); quintic Newton-Schulz in bfloat16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = (x.T if tall else x).to(matrix.dtype)
    return result


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates for weights of two or more dimensions."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                buffer = state["momentum"]
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalise(p.grad.lerp(buffer, group["momentum"]).flatten(1))
                scale = 0.2 * max(update.shape) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.view_as(p), alpha=-group["lr"] * scale)


def optimisers(modules: Iterable[nn.Module], lr: float, adam_lr: float, weight_decay: float = 0.01) -> list[torch.optim.Optimizer]:
    """Muon for hidden weights; AdamW for biases, norms, embeddings and the first and last convolutions."""
    hidden: list[Tensor] = []
    rest: list[Tensor] = []
    for module in modules:
        for name, p in module.named_parameters():
            if not p.requires_grad:
                continue
            edge = any(word in name for word in ("conv_in", "conv_out", "embedding", "quant_conv"))
            (rest if p.ndim < 2 or edge else hidden).append(p)
    return [
        Muon(hidden, lr=lr, weight_decay=weight_decay),
        torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
