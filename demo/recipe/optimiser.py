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
    """Approximate U V^T of each ``matrix`` = U S V^T, (..., rows, columns); quintic Newton-Schulz in bfloat16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = (x.mT if tall else x).to(matrix.dtype)
    return result


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates for weights of two or more dimensions."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient; on a GPU weights of one shape together, which starts far fewer kernels."""
        for group in self.param_groups:
            alike: dict[Any, list[Tensor]] = {}
            for number, p in enumerate(group["params"]):
                if p.grad is not None:
                    alike.setdefault(p.shape if p.is_cuda else number, []).append(p)
                    if "momentum" not in self.state[p]:
                        self.state[p]["momentum"] = torch.zeros_like(p)
            for weights in alike.values():
                self._update(weights, group)

    def _update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [p.grad for p in weights if p.grad is not None]
        buffers = [self.state[p]["momentum"] for p in weights]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, buffers, group["momentum"])
        updates = orthogonalise(torch.stack([one.flatten(1) for one in ahead]))
        scale = 0.2 * max(updates.shape[1:]) ** 0.5
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        moved = [update.view(p.shape) for update, p in zip(updates, weights, strict=True)]
        torch._foreach_add_(weights, moved, alpha=-group["lr"] * scale)


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
        torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=all(p.is_cuda for p in rest) or None),
    ]
