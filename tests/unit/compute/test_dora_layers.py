"""DoRA layers equal those of PEFT."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.unit.compute.peft_layers import RANK, by_peft, results
from trainer.adapters import adapter


def dora(kind: str, dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> tuple[Any, torch.Tensor]:
    """A model of one layer with DoRA whose up matrix is not zero and whose magnitudes have moved, and an input."""
    torch.manual_seed(0)
    plain = nn.Linear(24, 40, dtype=dtype) if kind == "linear" else nn.Conv2d(24, 40, 3, padding=1, dtype=dtype)
    model: Any = nn.Sequential(plain).requires_grad_(False)
    adapter.inject(model, ["0"], rank=RANK, alpha=6.0, seed=1, dora=True, dropout=dropout)
    with torch.no_grad():
        model[0].lora_B.weight.normal_(std=0.05)
        model[0].lora_magnitude.mul_(1 + 0.1 * torch.rand(40))
    return model, torch.randn((7, 24) if kind == "linear" else (2, 24, 5, 3))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["linear", "3x3"])
def test_dora_matches_peft(kind: str, dropout: float) -> None:
    model, inputs = dora(kind, dropout=dropout)
    theirs = by_peft(model, dropout=dropout, use_dora=True)
    magnitude = theirs[0].lora_magnitude_vector["default"]
    magnitude.weight = nn.Parameter(model[0].lora_magnitude.detach().reshape(magnitude.weight.shape).clone())
    found = []
    for each in (model.train(), theirs.train()):
        torch.manual_seed(5)  # the same inputs are dropped
        computed, gradients = results(each, inputs)
        found.append((computed, {name.replace("_vector.weight", ""): gradient for name, gradient in gradients.items()}))
    (ours, mine), (peft_s, papers) = found
    torch.testing.assert_close(ours, peft_s, rtol=1e-5, atol=1e-5)
    assert mine.keys() == papers.keys() and len(mine) == 4
    for name, gradient in papers.items():
        torch.testing.assert_close(mine[name], gradient.reshape(mine[name].shape), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "3x3"])
def test_the_norms_of_dora_are_fp32_whatever_the_layer_computes_in(kind: str) -> None:
    model, inputs = dora(kind, torch.bfloat16)
    layer = model[0]
    change = (layer.lora_B.weight.double().flatten(1) @ layer.lora_A.weight.double().flatten(1)) * layer.scale
    exact = (layer.base_layer.weight.double().flatten(1) + change).norm(dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer.norms().double(), exact, rtol=1e-6, atol=0)
    assert {tensor.dtype for tensor in next(adapter.pairs(model)).tensors.values()} == {torch.float32}
    fresh, _ = dora(kind, torch.bfloat16)
    adapter_free = fresh[0].base_layer(inputs.bfloat16())
    with torch.no_grad():
        fresh[0].lora_B.weight.zero_()
        fresh[0].lora_magnitude.copy_(fresh[0].norms())
    assert torch.equal(fresh(inputs.bfloat16()), adapter_free), "it does not start at the base exactly"


def test_the_pairs_of_dora_have_a_magnitude() -> None:
    model, _ = dora("linear")
    assert [sorted(pair.tensors) for pair in adapter.pairs(model)] == [["0.down", "0.magnitude", "0.up"]]
