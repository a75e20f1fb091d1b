"""A merged LoRA has the weighted sum of the changes of its parts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.unit.lorafile.factors import METADATA, loha, lokr, lora_file, weights_of
from tests.unit.lorafile.helpers import lora_tensors, small_layers
from trainer.core.errors import UserError
from trainer.lorafile import (
    LoraModule,
    LoraWeights,
    common_dtype,
    convert,
    inspect_lora,
    merge,
    read_lora,
    write_lora,
)  # fmt: skip


def test_merged_change_is_the_weighted_sum(tmp_path: Path) -> None:
    first = read_lora(lora_file(tmp_path / "a.safetensors", alpha=2.0, seed=1))
    few = {name: size for name, size in list(small_layers().items())[:5]}
    save_file(
        lora_tensors(few, rank=6, alpha=3.0, seed=2),
        tmp_path / "b.safetensors",
        {"modelspec.title": "B", "modelspec.trigger_phrase": "bbb"},
    )
    second = read_lora(tmp_path / "b.safetensors")
    merged, report = merge([(first, 0.5), (second, -0.8)])
    assert report is None
    others = {module.name: module for module in second}
    for module in merged:
        expected = next(m for m in first if m.name == module.name).delta() * 0.5
        if module.name in others:
            expected = expected - 0.8 * others[module.name].delta()
            assert module.rank == 10
        assert torch.allclose(module.delta(), expected, atol=1e-5)
    assert merged.metadata["modelspec.merged_from"] == "Style, B"
    assert merged.metadata["modelspec.trigger_phrase"] == "bbb"
    assert merged.metadata["custom"] == METADATA["custom"]
    origin = json.loads(merged.metadata["animelora.merged"])
    assert [part["strength"] for part in origin] == [0.5, -0.8]
    write_lora(tmp_path / "c.safetensors", convert(merged, "kohya", torch.float16))
    assert inspect_lora(tmp_path / "c.safetensors").usable


def test_merge_refuses_incompatible_parts(tmp_path: Path) -> None:
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    one = {"lora_up.weight": torch.ones(1280, 2), "lora_down.weight": torch.ones(2, 768)}
    two = {"lora_up.weight": torch.ones(1280, 2), "lora_down.weight": torch.ones(2, 1024)}
    sd1 = LoraWeights((LoraModule("unet", name, "lora", one),), "sd1", "kohya", context_width=768)
    sd2 = LoraWeights((LoraModule("unet", name, "lora", two),), "sd2", "kohya", context_width=1024)
    with pytest.raises(UserError, match=r"Stable Diffusion 1.x and Stable Diffusion 2.x"):
        merge([(sd1, 1.0), (sd2, 1.0)])
    dora = LoraModule("unet", name, "lora", {**one, "dora_scale": torch.ones(1280, 1)})
    with pytest.raises(UserError, match="DoRA"):
        merge([(weights_of(dora), 1.0), (sd1, 1.0)])
    kron = LoraModule("unet", name, "lokr", lokr(1280, 768))
    with pytest.raises(UserError, match="lokr"):
        merge([(weights_of(kron), 1.0), (sd1, 1.0)])
    full = [weights_of(LoraModule("unet", name, "full", {"diff": torch.ones(1280, width)})) for width in (768, 1024)]
    with pytest.raises(UserError, match="different sizes"):
        merge([(weights, 1.0) for weights in full])


def tucker(outputs: int, inputs: int, rank: int) -> dict[str, torch.Tensor]:
    matrices = {"lora_up.weight": torch.randn(outputs, rank, 1, 1), "lora_down.weight": torch.randn(rank, inputs, 1, 1)}
    return {**matrices, "lora_mid.weight": torch.randn(rank, rank, 3, 3)}


@pytest.mark.parametrize("algorithm", ["loha", "lokr", "tucker"])
def test_merge_with_rank_is_optimal_and_reports_exact_error(algorithm: str) -> None:
    """The result is the best approximation of the exact sum (Eckart-Young) and not an approximation of an approximation."""
    torch.manual_seed(0)
    own = [
        LoraModule("unet", name, "lora" if algorithm == "tucker" else algorithm, factors, torch.tensor(2.0))
        for name in ("down_blocks.0.resnets.0.conv1", "down_blocks.0.resnets.1.conv1")
        for factors in [{"loha": loha(64, 48, 8), "lokr": lokr(64, 48), "tucker": tucker(64, 48, 8)}[algorithm]]
    ]
    tail = (1, 1) if algorithm == "tucker" else ()
    factors = {"lora_up.weight": torch.randn(64, 3, *tail), "lora_down.weight": torch.randn(3, 48, *(3, 3) if tail else ())}
    other = LoraModule("unet", own[0].name, "lora", factors, torch.tensor(3.0))
    names = {"ss_network_module": "lycoris.kohya", "ss_network_args": '{"algo": "loha"}', "ss_network_dim": "8"}
    first = LoraWeights(tuple(own), "sd1", "kohya", names)
    merged, report = merge([(first, 0.5), (weights_of(other), -2.0)], rank=4)
    exact = [(0.5 * own[0].delta() - 2.0 * other.delta()).flatten(1), 0.5 * own[1].delta().flatten(1)]
    best = sum(float(torch.linalg.svdvals(matrix)[4:].norm()) ** 2 for matrix in exact)
    lost = sum(float((module.delta().flatten(1) - matrix).norm()) ** 2 for module, matrix in zip(merged, exact, strict=True))
    total = sum(float(matrix.norm()) ** 2 for matrix in exact)
    assert best / total > 0.01 and lost == pytest.approx(best, rel=1e-3)
    assert report is not None and report.changed == 2
    assert report.error == pytest.approx((lost / total) ** 0.5, rel=1e-3)
    assert [module.rank for module in merged] == [4, 4]
    assert merged.metadata["ss_network_module"] == "networks.lora" and "ss_network_args" not in merged.metadata


@pytest.mark.parametrize("size", [1e-2, 1e-3, 3e-4])
def test_merge_with_small_scale_is_accurate_in_fp16(size: float) -> None:
    """With kohya's alpha of 1 at rank 128 and small up weights, the product with the scale would be subnormal in fp16."""
    torch.manual_seed(0)
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    modules = [
        LoraModule(
            "unet", name, "lora",
            {"lora_up.weight": (torch.randn(320, 128) * size).half(), "lora_down.weight": (torch.randn(128, 768) * 0.02).half()},
            torch.tensor(1.0),
        )
        for _ in range(2)
    ]  # fmt: skip
    merged, _ = merge([(weights_of(module), 0.6) for module in modules])
    narrow = {key.split(".", 1)[1]: tensor for key, tensor in convert(merged, "kohya", torch.float16).tensors.items()}
    product = narrow["lora_up.weight"].double() @ narrow["lora_down.weight"].double() * (float(narrow["alpha"]) / 256)
    pairs = [(m.tensors["lora_up.weight"].double(), m.tensors["lora_down.weight"].double()) for m in modules]
    exact = 0.6 / 128 * torch.stack([up @ down for up, down in pairs]).sum(0)
    assert float((product - exact).norm() / exact.norm()) < 5e-4  # one rounding to fp16: 2**-11


def test_common_dtype_is_the_widest_and_at_least_16_bits() -> None:
    def of(dtype: torch.dtype) -> LoraWeights:
        return weights_of(LoraModule("unet", "conv_out", "full", {"diff": torch.ones(2, 2).to(dtype)}))

    small, half, brain, wide = torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.float32
    for kinds, expected in (
        ([small], half), ([small, half], half), ([small, brain], brain), ([half, half], half), ([brain], brain),
        ([half, brain], wide), ([half, wide], wide), ([], None),
    ):  # fmt: skip
        assert common_dtype([of(kind) for kind in kinds]) is expected
