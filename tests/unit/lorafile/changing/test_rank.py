"""Rank reduction is optimal, and its reported error is exact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.unit.lorafile.factors import lokr, lora_file, weights_of
from tests.unit.lorafile.helpers import same_modules
from trainer.core.errors import UserError
from trainer.lorafile import (
    LoraModule,
    LoraWeights,
    read_lora,
    reduce_rank,
)  # fmt: skip


def test_rank_reduction_is_optimal_and_reports_exact_error(tmp_path: Path) -> None:
    source = read_lora(lora_file(tmp_path / "a.safetensors", rank=8, alpha=4.0, dtype=torch.float32))
    reduced, report = reduce_rank(source, 2)
    lost = total = best = 0.0
    for old, new in zip(source, reduced, strict=True):
        matrix = old.delta().flatten(1)
        assert new.rank == 2 and new.scale == pytest.approx(old.scale)
        assert new.tensors["lora_down.weight"].shape[1:] == old.tensors["lora_down.weight"].shape[1:]
        lost += float((matrix - new.delta().flatten(1)).norm()) ** 2
        total += float(matrix.norm()) ** 2
        best += float(torch.linalg.svdvals(matrix)[2:].norm()) ** 2  # Eckart-Young
    assert report.error == pytest.approx((lost / total) ** 0.5, rel=1e-3)
    assert lost == pytest.approx(best, rel=1e-3)
    assert report.changed == len(source.modules)
    assert reduced.metadata["ss_network_dim"] == "2" and reduced.metadata["ss_network_alpha"] == "1.0"


def test_worst_layer_does_not_depend_on_the_sign_of_alpha(tmp_path: Path) -> None:
    reports = []
    for alpha in (4.0, -4.0):
        _, report = reduce_rank(read_lora(lora_file(tmp_path / "a.safetensors", rank=8, alpha=alpha, dtype=torch.float32)), 2)
        reports.append((report.worst_layer, round(report.worst_error, 6), round(report.error, 6)))
    assert reports[0] == reports[1] and reports[0][1] >= reports[0][2] > 0


def test_layers_of_lower_rank_stay_unchanged(tmp_path: Path) -> None:
    source = read_lora(lora_file(tmp_path / "a.safetensors"))
    reduced, report = reduce_rank(source, 16)
    assert same_modules(source.modules, reduced.modules)
    assert (report.error, report.changed) == (0.0, 0)
    with pytest.raises(UserError, match="at least 1"):
        reduce_rank(source, 0)


@pytest.mark.parametrize("size", [(64, 48), (320, 768)])
def test_other_algorithms_are_approximated_by_lora(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    module = LoraModule("unet", "mid_block.attentions.0.proj_in", "lokr", lokr(*size), torch.tensor(1.0))
    exact, report = reduce_rank(weights_of(module), 8)  # 4 x 2: the Kronecker product has no higher rank
    assert report.error < 1e-5
    assert torch.allclose(exact.modules[0].delta(), module.delta(), atol=1e-4)
    _, coarse = reduce_rank(weights_of(module), 3)
    singular = torch.linalg.svdvals(module.delta())
    assert coarse.error == pytest.approx(float(singular[3:].norm() / singular.norm()), rel=0.02)


def test_tucker_convolution_becomes_plain() -> None:
    torch.manual_seed(0)
    tensors = {
        "lora_up.weight": torch.randn(8, 3, 1, 1),
        "lora_mid.weight": torch.randn(3, 3, 3, 3),
        "lora_down.weight": torch.randn(3, 6, 1, 1),
    }
    module = LoraModule("unet", "down_blocks.0.resnets.0.conv1", "lora", tensors, torch.tensor(3.0))
    plain, report = reduce_rank(weights_of(module), 8)
    assert report.error < 1e-5
    assert torch.allclose(plain.modules[0].delta(), module.delta(), atol=1e-4)
    image = torch.randn(1, 6, 8, 8)
    inner = torch.nn.functional.conv2d(torch.nn.functional.conv2d(image, tensors["lora_down.weight"]), tensors["lora_mid.weight"])
    assert torch.allclose(
        torch.nn.functional.conv2d(image, module.delta()), torch.nn.functional.conv2d(inner, tensors["lora_up.weight"]), atol=1e-3
    )


def test_rank_reduction_removes_arguments_of_another_algorithm() -> None:
    names = {"ss_network_module": "lycoris.kohya", "ss_network_args": '{"algo": "lokr"}', "ss_network_dim": "2"}
    module = LoraModule("unet", "mid_block.attentions.0.proj_in", "lokr", lokr(64, 32), torch.tensor(1.0))
    reduced, _ = reduce_rank(LoraWeights((module,), "sd1", "kohya", names), 4)
    assert "ss_network_args" not in reduced.metadata and reduced.metadata["ss_network_module"] == "networks.lora"
    factors = {"lora_up.weight": torch.randn(64, 8), "lora_down.weight": torch.randn(8, 32)}
    plain = LoraWeights(
        (replace(module, algorithm="lora", tensors=factors),), "sd1", "kohya", {**names, "ss_network_args": '{"conv_dim": 4}'}
    )
    assert reduce_rank(plain, 4)[0].metadata["ss_network_args"] == '{"conv_dim": 4}'
