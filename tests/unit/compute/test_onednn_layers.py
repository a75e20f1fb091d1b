"""Layers in oneDNN's blocks compute what plain ones do, whatever shapes come, and only where there is room for them."""

from __future__ import annotations

import copy
import itertools
import platform
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from tests.unit.compute.helpers import same_training
from tests.unit.training_helpers import configuration, make_dataset, train_here
from trainer.adapters import adapter
from trainer.compute import torch_private
from trainer.compute.onednn import onednn_layers, packed_weights
from trainer.compute.onednn.onednn_layers import OneDnnConv2d, OneDnnLinear, OneDnnPointwise, layers_agree, packed_bytes, replace_layers
from trainer.core.devices import pick_precision
from trainer.dataset import open_dataset
from trainer.families import open_checkpoint
from trainer.families.sd1 import FAMILY
from trainer.plan import planning
from trainer.plan.planning import make_plan
from trainer.runs.run_plan import RunPlan

ONEDNN = torch.backends.mkldnn.is_available() and platform.machine().lower() in ("x86_64", "amd64")
pytestmark = [pytest.mark.seconds, pytest.mark.skipif(not ONEDNN, reason="NOT CHECKED: layers are prepacked with oneDNN on x86")]
CPU = torch.device("cpu")
BF16 = ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()
_needs_bf16 = pytest.mark.skipif(not BF16, reason="NOT CHECKED: oneDNN takes bf16 weights on processors with AVX-512")
DTYPES = [torch.float32, pytest.param(torch.bfloat16, marks=_needs_bf16)]
SHAPES = ((1, 8, 2, 2), (1, 8, 16, 16), (3, 8, 16, 16), (1, 8, 14, 18), (2, 8, 5, 7), (1, 8, 16, 16), (1, 8, 2, 2))


@pytest.fixture
def small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model is packed, for which it would not be worth it."""
    monkeypatch.setattr(planning, "_WORTH_GB", 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_this_torch_has_the_operators(dtype: torch.dtype) -> None:
    assert layers_agree(dtype), "a torch that lost them would train as slowly as before, and nothing else here would say so"


@pytest.mark.skipif(BF16, reason="NOT CHECKED: this processor has AVX-512")
@pytest.mark.usefixtures("small_ones_too")
def test_a_processor_without_avx512_is_given_fp32_and_bf16_as_written_when_asked(shallow_checkpoint: Path, tmp_path: Path) -> None:
    assert not layers_agree(torch.bfloat16)
    assert pick_precision("auto", CPU) == "fp32"
    dataset, checkpoint = open_dataset(make_dataset(tmp_path, 2)), open_checkpoint(str(shallow_checkpoint))
    config = configuration(shallow_checkpoint, dataset.path, tmp_path, {"training.precision": "bf16"})
    assert not make_plan(config, dataset, FAMILY, checkpoint, CPU, "bf16").prepacked


def convolution(stride: int = 1, *, bias: bool = True) -> torch.nn.Conv2d:
    torch.manual_seed(1)
    return torch.nn.Conv2d(8, 24, 3, stride=stride, padding=1, bias=bias).requires_grad_(False)


def both(layer: torch.nn.Module, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What ``layer`` computes, and the derivative of a weighted sum of it by its input."""
    given = inputs.clone().requires_grad_()
    computed = layer(given)
    (computed * torch.linspace(-1, 1, computed.numel()).view(computed.shape)).sum().backward()
    assert given.grad is not None
    return computed.detach(), given.grad


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_packed_convolution_matches_a_plain_one(stride: int, bias: bool) -> None:
    for shape in SHAPES:  # each alone: at its first call
        plain = convolution(stride, bias=bias)
        packed = OneDnnConv2d(copy.deepcopy(plain))
        inputs = torch.randn(shape)
        for ours, theirs in zip(both(packed, inputs), both(plain, inputs), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_packed_weight_is_kept_only_in_packed_form() -> None:
    plain = convolution()
    packed = OneDnnConv2d(copy.deepcopy(plain))
    assert torch.equal(packed.weight, plain.weight)
    both(packed, torch.randn(1, 8, 4, 4))
    assert packed.plain is None
    assert torch.equal(packed.weight, plain.weight)
    assert [tuple(parameter.shape) for parameter in packed.parameters()] == [(24,)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kind_of_packed_weight_can_be_unpacked(dtype: torch.dtype) -> None:
    kernel, matrix = torch.randn(24, 8, 3, 3).to(dtype), torch.randn(600, 24).to(dtype)
    blocks: packed_weights.PackedWeight
    for blocks in (packed_weights.PackedConvolution((1, 1), (2, 2)), packed_weights.PackedConvolutionGradient((1, 1), (2, 2))):
        blocks.pack(kernel, torch.Size((1, 8, 5, 6)))
        assert torch.equal(blocks.unpacked(), kernel)
    blocks = packed_weights.PackedLinear()
    blocks.pack(packed_weights.transposed(matrix), torch.Size((3, 600)))
    assert torch.equal(blocks.unpacked(), matrix.t())


@pytest.mark.parametrize("first", ["training", "images"])
def test_what_training_needs_is_packed_from_the_rows_at_the_first_call_and_else_from_the_blocks(
    first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked: list[packed_weights.PackedWeight] = []
    rows = packed_weights.PackedWeight.unpacked

    def counted(self: packed_weights.PackedWeight) -> torch.Tensor:
        unpacked.append(self)
        return rows(self)

    monkeypatch.setattr(packed_weights.PackedWeight, "unpacked", counted)
    cases: list[tuple[Any, Any, tuple[int, ...]]] = [
        (convolution(), OneDnnConv2d, (1, 8, 6, 4)),
        (convolution(stride=2), OneDnnConv2d, (1, 8, 5, 7)),
        (torch.nn.Linear(8, 24).requires_grad_(False), OneDnnLinear, (3, 8)),
        (torch.nn.Conv2d(8, 24, 1).requires_grad_(False), OneDnnPointwise, (2, 8, 3, 5)),
    ]
    for plain, kind, shape in cases:
        packed, inputs = kind(copy.deepcopy(plain)), torch.randn(shape)
        unpacked.clear()
        if first == "images":
            with torch.no_grad():
                packed(inputs)
        for ours, theirs in zip(both(packed, inputs), both(plain, inputs), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        assert len(unpacked) == (first == "images"), "a weight is brought from blocks into rows only where its rows are gone"


def test_changing_shapes_change_no_number_and_a_layer_that_is_repacked_all_the_time_becomes_plain() -> None:
    plain = convolution()
    packed = OneDnnConv2d(copy.deepcopy(plain))
    for shape in SHAPES * 4:
        inputs = torch.randn(shape)
        for ours, theirs in zip(both(packed, inputs), both(plain, inputs), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert torch.equal(packed.weight, plain.weight)


def test_the_layout_of_a_weight_is_compared_without_uninitialised_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in PyTorch's Windows build: bytes 1 to 3 of the description differ between calls."""
    matrix, serialized = torch.randn(40, 24), torch.ops.mkldnn._get_mkldnn_serialized_md
    numbers = itertools.count(1)

    def garbled(weight: torch.Tensor) -> torch.Tensor:
        described: torch.Tensor = serialized(weight).clone()
        described.view(torch.uint8)[1:4] = next(numbers)
        return described

    packed = torch.ops.mkldnn._reorder_linear_weight(matrix, 1)
    other = torch.ops.mkldnn._reorder_linear_weight(torch.randn(40, 25), 1)
    monkeypatch.setattr(torch.ops.mkldnn, "_get_mkldnn_serialized_md", garbled)
    assert torch_private.weight_layout(packed) == torch_private.weight_layout(packed)
    assert torch_private.weight_layout(packed) != torch_private.weight_layout(other)


def change_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every shape needs another layout of the weights."""
    numbers = itertools.count()
    monkeypatch.setattr(torch_private, "weight_layout", lambda packed: str(next(numbers)).encode())


@pytest.mark.parametrize("stride", [1, 2])
def test_layer_becomes_plain_if_every_call_needs_another_layout(monkeypatch: pytest.MonkeyPatch, stride: int) -> None:
    change_layouts(monkeypatch)
    plain = convolution(stride)
    packed = OneDnnConv2d(copy.deepcopy(plain))
    for number in range(8):
        inputs = torch.randn(1, 8, 4 + 2 * (number % 3), 6)
        for ours, theirs in zip(both(packed, inputs), both(plain, inputs), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert packed._stays_plain
    assert torch.equal(packed.weight, plain.weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kind", "shapes"), [
    (OneDnnLinear, ((1, 24), (2, 9, 24), (4, 24), (2, 3, 5, 24))),
    (OneDnnPointwise, ((1, 24, 1, 1), (2, 24, 3, 5), (1, 24, 8, 8))),
])  # fmt: skip
def test_a_packed_matrix_product_computes_and_derives_what_a_plain_one_does(
    kind: Any, shapes: tuple[tuple[int, ...], ...], bias: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(1)
    plain: Any = torch.nn.Linear(24, 40, bias=bias) if kind is OneDnnLinear else torch.nn.Conv2d(24, 40, 1, bias=bias)
    plain = plain.to(dtype).requires_grad_(False)
    packed = kind(copy.deepcopy(plain))
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    for shape in (*shapes, *shapes):
        inputs = torch.randn(shape).to(dtype)
        for ours, theirs in zip(both(packed, inputs), both(plain, inputs), strict=True):
            assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    assert packed.plain is None and len(list(packed.parameters())) == bias
    assert torch.equal(packed.weight, plain.weight)


def test_matrix_product_becomes_plain_like_a_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    change_layouts(monkeypatch)
    plain = torch.nn.Linear(24, 40).requires_grad_(False)
    packed = OneDnnLinear(copy.deepcopy(plain))
    for number in range(8):
        inputs = torch.randn(2 + number % 3, 24)
        for ours, theirs in zip(both(packed, inputs), both(plain, inputs), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert packed._stays_plain
    assert torch.equal(packed.weight, plain.weight)


def test_layer_with_one_shape_stays_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    change_layouts(monkeypatch)
    packed = OneDnnConv2d(convolution())
    for number in range(200):
        both(packed, torch.randn(2 if number % 50 == 49 else 1, 8, 4, 4))  # the last batch of an epoch is smaller
    assert not packed._stays_plain


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_unet_with_lora_gives_the_same_gradients(shallow_checkpoint: Path, dtype: torch.dtype) -> None:
    gradients: list[list[torch.Tensor]] = []
    draw = torch.Generator().manual_seed(0)
    latents, context = torch.randn(2, 4, 16, 16, generator=draw).to(dtype), torch.randn(2, 77, 64, generator=draw).to(dtype)
    for pack in (False, True):
        unet: Any = FAMILY.load_denoiser(open_checkpoint(str(shallow_checkpoint)), dtype)
        unet.to(memory_format=torch.channels_last)
        weights = [module.weight.numel() for module in unet.modules() if type(module) in (torch.nn.Linear, torch.nn.Conv2d)]
        if pack:
            packed = packed_bytes(unet, dtype)
            assert packed == sum(weights) * 2 if dtype == torch.bfloat16 else 0 < packed < sum(weights) * 4
            replace_layers(unet)
            assert packed_bytes(unet, dtype) == 0
            kinds = {type(module) for module in unet.modules()}
            assert (torch.nn.Linear in kinds) == (dtype == torch.float32)
        adapter.inject(unet, FAMILY.denoiser_targets(unet, "all-linear+conv"), rank=4, alpha=4, seed=1)
        for index, parameter in enumerate(adapter.parameters(unet)):
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
        unet.train()(latents, torch.tensor([5, 900]), context).sample.square().mean().backward()
        gradients.append([parameter.grad for parameter in adapter.parameters(unet) if parameter.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    apart = sum(float((a - b).square().sum()) for a, b in zip(*gradients, strict=True)) ** 0.5
    assert apart < (1e-4 if dtype == torch.float32 else 0.03) * sum(float(a.square().sum()) for a in gradients[0]) ** 0.5


@pytest.mark.usefixtures("small_ones_too")
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=_needs_bf16)])
def test_a_run_trains_the_same_with_and_without(
    shallow_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, precision: str
) -> None:
    AcceleratorState._reset_state(True)  # a process has one precision, and the tests before may have had another
    request.addfinalizer(partial(AcceleratorState._reset_state, True))
    changes = {"training.max_steps": 3, "training.precision": precision, "training.gradient_checkpointing": precision == "bf16"}
    folder, exact = make_dataset(tmp_path, 3), precision == "fp32"
    packed = train_here(configuration(shallow_checkpoint, folder, tmp_path / "packed", changes))
    monkeypatch.setattr(onednn_layers, "layers_agree", lambda dtype: False)
    plain = train_here(configuration(shallow_checkpoint, folder, tmp_path / "plain", changes))
    chosen = [next(event.prepacked for event in run.told if isinstance(event, RunPlan)) for run in (packed, plain)]
    assert chosen == [True, False]
    same_training(packed, plain, loss=1e-4 if exact else 5e-3, norm=5e-3 if exact else 0.05)


@pytest.mark.usefixtures("small_ones_too")
def test_packing_is_planned_where_it_helps(shallow_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, checkpoint = open_dataset(make_dataset(tmp_path, 2)), open_checkpoint(str(shallow_checkpoint))

    def planned(**changes: Any) -> RunPlan:
        config = configuration(
            shallow_checkpoint, dataset.path, tmp_path, {name.replace("__", "."): value for name, value in changes.items()}
        )
        return make_plan(config, dataset, FAMILY, checkpoint, CPU, "fp32")

    usual = planned()
    assert usual.prepacked
    unet = FAMILY.empty_denoiser(checkpoint)
    monkeypatch.setattr(planning, "usable_memory_gb", lambda device: usual.memory_gb)  # enough to train, not to spend on speed
    scarce = planned()
    assert not scarce.prepacked
    assert usual.memory["base"] - scarce.memory["base"] == pytest.approx(packed_bytes(unet, torch.float32) / 1e9, abs=2e-3)
    monkeypatch.setattr(planning, "usable_memory_gb", lambda device: 1000.0)
    for changes in ({"network__dora": True}, {"training__compile": True}, {"training__base_precision": "int8"}):
        assert not planned(**changes).prepacked
    monkeypatch.setattr(planning, "_WORTH_GB", 0.1)
    assert not planned().prepacked  # a model as small as this
    monkeypatch.setattr(planning, "_WORTH_GB", 1e-6)
    item = dataset.items[0]
    dataset = replace(dataset, items=[*dataset.items, replace(item, width=item.width + 64)])
    assert not planned().prepacked  # pictures of two sizes
