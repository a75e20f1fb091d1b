"""A frozen base in 8 or 4 bits: the run computes with exactly the weights that were stored, and stores them closely.

The comparison is a plain UNet whose weights were replaced by the unpacked ones.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from tests.unit.training_helpers import configuration, make_dataset, train_here
from trainer.adapters import adapter
from trainer.compute.quantised_base import quantise
from trainer.compute.quantised_base import quantised_layers as quantised_layers
from trainer.compute.quantised_base.codes import BITS, dequantise_weight, quantise_weight
from trainer.families import open_checkpoint
from trainer.families.sd1 import FAMILY

pytestmark = pytest.mark.seconds

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
KINDS = ["int8", "fp8", "nf4"]
# NormalFloat's levels, from the appendix of the QLoRA paper
NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334]
NF4 += [-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224]
NF4 += [0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]


def needs(kind: str) -> None:
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")


def rounded(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """What ``kind`` keeps of ``weight``, written down from its definition."""
    if kind == "nf4":
        blocks = weight.flatten().view(-1, 64)
        scales = blocks.abs().amax(dim=1, keepdim=True)
        levels = torch.tensor(NF4)
        nearest = (blocks / scales).unsqueeze(-1).sub(levels).abs().argmin(dim=-1)
        return (levels[nearest] * scales).view(weight.shape)
    scales = weight.flatten(1).abs().amax(dim=1).view(-1, *[1] * (weight.ndim - 1))
    if kind == "int8":
        return torch.round(weight * 127 / scales) * scales / 127
    return (weight * 448 / scales).to(torch.float8_e4m3fn).float() * scales / 448


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(96, 64), (32, 64, 3, 3), (700, 640), (3, 70_400)])  # the last two in several strips
def test_dequantised_weights_match_the_format(kind: str, shape: tuple[int, ...]) -> None:
    needs(kind)
    weight = 0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    codes, scales = quantise_weight(weight, kind)
    unpacked = dequantise_weight(codes, scales, kind, shape, torch.float32)
    # a weight between two levels may fall either way
    assert (unpacked - rounded(weight, kind)).norm() < 2e-3 * weight.norm()
    assert codes.numel() * codes.element_size() * 8 == weight.numel() * BITS[kind]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_a_gpu)])
def test_single_kernel_dequantises_int8_exactly(device: str, dtype: torch.dtype) -> None:
    """Off the CPU the product is written in the dtype that is asked for: computed in fp32 and rounded once."""
    weight = torch.randn((64, 96), generator=torch.Generator().manual_seed(1)).to(device)
    codes, scales = quantise_weight(weight, "int8")
    assert torch.equal(torch.mul(codes, scales, out=torch.empty_like(codes, dtype=dtype)), (codes.float() * scales).to(dtype))
    assert torch.equal(dequantise_weight(codes, scales, "int8", (64, 96), dtype), (codes.float() * scales).to(dtype))


def test_int8_loses_less_than_fp8_and_fp8_less_than_nf4() -> None:
    pytest.importorskip("bitsandbytes")
    weight = 0.03 * torch.randn(320, 640, generator=torch.Generator().manual_seed(2))
    lost = {
        kind: float((dequantise_weight(*quantise_weight(weight, kind), kind, (320, 640), torch.float32) - weight).norm() / weight.norm())
        for kind in KINDS
    }
    assert lost["int8"] < 0.01 < lost["fp8"] < 0.03 < lost["nf4"] < 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "layer",
    [nn.Linear(64, 96), nn.Linear(64, 32, bias=False), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.Conv2d(32, 64, 1)],
    ids=["linear", "linear without bias", "strided convolution", "1x1 convolution"],
)
def test_quantised_layer_matches_its_dequantised_weight(layer: nn.Module, kind: str) -> None:
    needs(kind)
    layer.requires_grad_(False)
    packed = quantise.quantised_layer(layer, kind)
    plain: Any = copy.deepcopy(layer)
    plain.weight.data = packed.weight.clone()  # type: ignore[operator]
    inputs = torch.randn((2, 5, 64) if isinstance(layer, nn.Linear) else (2, 32, 9, 8))
    first, second = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    result, expected = packed(first), plain(second)
    assert torch.equal(result, expected)
    upstream = torch.randn_like(result)
    result.backward(upstream)
    expected.backward(upstream)
    assert first.grad is not None and second.grad is not None
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-6, atol=1e-6)


def test_backward_pass_keeps_no_dequantised_weight() -> None:
    packed = quantise.quantised_layer(nn.Linear(256, 512).requires_grad_(False), "int8")
    saved: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        packed(torch.randn(1, 256, requires_grad=True))
    assert sum(saved) <= 256 * 512 + 512 * 4  # codes and scales, not 4 bytes a weight


def loss_and_gradients(unet: Any, family_width: int) -> tuple[float, list[torch.Tensor]]:
    draw = torch.Generator().manual_seed(3)
    latents, context = torch.randn(2, 4, 16, 16, generator=draw), torch.randn(2, 77, family_width, generator=draw)
    wanted = torch.randn(2, 4, 16, 16, generator=draw)
    for index, parameter in enumerate(adapter.parameters(unet)):  # up begins at zero, which would hide down's gradient
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
    loss = (unet(latents, torch.tensor([11, 700]), context).sample - wanted).square().mean()
    loss.backward()
    return float(loss.detach()), [parameter.grad for parameter in adapter.parameters(unet) if parameter.grad is not None]


@pytest.mark.parametrize(("kind", "dora"), [("int8", False), ("fp8", False), ("nf4", False), ("int8", True)])
def test_lora_on_quantised_base_learns_the_same(tiny_checkpoint: Path, kind: str, dora: bool) -> None:
    needs(kind)
    checkpoint = open_checkpoint(str(tiny_checkpoint))
    packed: Any = FAMILY.load_denoiser(checkpoint, torch.float32)
    quantise.quantise(packed, kind, torch.device("cpu"))
    plain: Any = FAMILY.load_denoiser(checkpoint, torch.float32)
    changed = [name for name, module in packed.named_modules() if hasattr(module, "codes")]
    for name in changed:
        plain.get_submodule(name).weight.data = packed.get_submodule(name).weight.clone()
    assert {type(plain.get_submodule(name)) for name in changed} == {nn.Linear, nn.Conv2d}
    assert "conv_in" not in changed and len(changed) > 250
    targets = FAMILY.denoiser_targets(plain, "all-linear+conv")
    assert FAMILY.denoiser_targets(packed, "all-linear+conv") == targets
    for unet in (packed, plain):
        adapter.inject(unet, targets, rank=4, alpha=4, seed=5, dora=dora)
    (loss, gradients), (expected, wanted) = (loss_and_gradients(unet.train(), 64) for unet in (packed, plain))
    assert loss == pytest.approx(expected, rel=1e-6)
    assert len(gradients) == len(wanted) == len(targets) * (3 if dora else 2)
    apart = sum(float((a - b).square().sum()) for a, b in zip(gradients, wanted, strict=True)) ** 0.5
    assert apart < 1e-5 * sum(float(b.square().sum()) for b in wanted) ** 0.5


def test_device_never_holds_the_whole_base(shallow_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = FAMILY.load_denoiser(open_checkpoint(str(shallow_checkpoint)), torch.float32)
    moved: list[weakref.ref[nn.Module]] = []
    original = nn.Module.to

    def to(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        assert type(self) in (nn.Linear, nn.Conv2d)  # one layer at a time, and never the whole
        assert all(layer() is None for layer in moved), "a layer that is packed already is still there unpacked"
        moved.append(weakref.ref(self))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "to", to)
    quantise.quantise(unet, "int8", torch.device("cpu"))
    assert len(moved) > 100


@pytest.mark.parametrize("dora", [False, True])
def test_injecting_lora_dequantises_nothing_and_dora_once(shallow_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, dora: bool) -> None:
    unet = FAMILY.load_denoiser(open_checkpoint(str(shallow_checkpoint)), torch.bfloat16)
    quantise.quantise(unet, "int8", torch.device("cpu"))
    dequantised: list[torch.Tensor] = []

    def counted(codes: torch.Tensor, *args: Any) -> torch.Tensor:
        dequantised.append(codes)
        return dequantise_weight(codes, *args)

    monkeypatch.setattr(quantised_layers, "dequantise_weight", counted)
    targets = FAMILY.denoiser_targets(unet, "all-linear+conv")
    adapter.inject(unet, targets, rank=4, alpha=4, seed=5, dora=dora)
    assert len(dequantised) == len({id(codes) for codes in dequantised}) == (len(targets) if dora else 0)
    monkeypatch.undo()
    layer: Any = unet.get_submodule("down_blocks.0.attentions.0.proj_in").base_layer
    whole = dequantise_weight(layer.codes, layer.scales, "int8", layer.shape, torch.bfloat16)
    assert torch.equal(layer.weight, whole), "the weight was not restored"


def test_converting_the_model_keeps_quantised_weights() -> None:
    for kind in ("int8", "fp8"):
        packed: Any = quantise.quantised_layer(nn.Linear(64, 32), kind)
        before = packed.weight.clone()
        packed.to(torch.bfloat16)
        assert packed.codes.element_size() == 1 and packed.bias.dtype == torch.bfloat16
        assert torch.equal(packed.weight, before)


def test_quantised_convolutions_can_be_channels_last() -> None:
    for kind in ("int8", "fp8"):
        packed: Any = quantise.quantised_layer(nn.Conv2d(8, 4, 3), kind)
        before = packed.weight.clone()
        packed.to(memory_format=torch.channels_last)
        assert packed.weight.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(packed.weight, before)


@pytest.fixture
def accelerate_anew() -> Iterator[None]:
    """accelerate keeps one precision for a whole process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.mark.usefixtures("accelerate_anew")
@pytest.mark.parametrize("changes", [{}, {"training.precision": "bf16"}], ids=["fp32", "bf16"])
def test_8_bit_base_trains_close_to_the_plain_one(shallow_checkpoint: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = make_dataset(tmp_path, 3)
    runs = {
        kind: train_here(configuration(shallow_checkpoint, folder, tmp_path / kind, {"training.base_precision": kind, **changes}))
        for kind in ("same", "int8")
    }
    assert [run.status for run in runs.values()] == [0, 0]
    losses = {kind: [step.loss for step in run.steps] for kind, run in runs.items()}
    assert losses["int8"] == pytest.approx(losses["same"], rel=0.02)
    assert losses["int8"] != losses["same"]
