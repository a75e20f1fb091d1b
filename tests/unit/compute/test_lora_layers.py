"""LoRA layers have PEFT's values and gradients, and a linear layer needs fewer kernels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.unit.compute.peft_layers import RANK, Gradients, by_peft, results
from trainer.adapters import adapter
from trainer.compute import lora_layers
from trainer.compute.casting import LowPrecisionCopies
from trainer.compute.lora_layers import FusedLoraLinear, FusedLoraPointwise, LoraConv2d, LoraLayer, LoraLinear, apply_together
from trainer.compute.onednn import onednn_layers as onednn_layers
from trainer.compute.quantised_base.quantise import quantised_layer
from trainer.families import open_checkpoint
from trainer.families.sd1 import FAMILY


def lora(*, bias: bool = True, alpha: float = 6.0, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    """A model of one Linear with LoRA whose up matrix is not zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40, bias=bias, dtype=dtype)).requires_grad_(False)
    adapter.inject(model, ["0"], rank=RANK, alpha=alpha, seed=1, **more)
    for parameter in adapter.parameters(model):
        parameter.data = 0.3 * torch.randn(parameter.shape)
    return model


def close(ours: tuple[torch.Tensor, Gradients], theirs: tuple[torch.Tensor, Gradients], tolerance: float) -> None:
    assert ours[0].dtype == theirs[0].dtype and ours[0].shape == theirs[0].shape
    assert float((ours[0] - theirs[0]).norm()) <= tolerance * float(theirs[0].norm())
    assert ours[1].keys() == theirs[1].keys() and len(ours[1]) == 3
    for name, gradient in theirs[1].items():
        assert ours[1][name].dtype == gradient.dtype, name
        assert float((ours[1][name] - gradient).norm()) <= tolerance * float(gradient.norm()), name


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("alpha", [float(RANK), 6.0])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24,), (5, 24), (2, 7, 24), (2, 3, 5, 24)])
def test_values_and_gradients_match_peft(shape: tuple[int, ...], bias: bool, alpha: float, recompute: bool) -> None:
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    ours = results(lora(bias=bias, alpha=alpha), inputs, recompute=recompute)
    close(ours, results(by_peft(lora(bias=bias, alpha=alpha), alpha), inputs), 1e-6)


@pytest.mark.parametrize("small", [0, 2**17])
def test_half_precision_is_as_accurate_as_peft(monkeypatch: pytest.MonkeyPatch, small: int) -> None:
    monkeypatch.setattr(lora_layers, "_SMALL", small)  # LoRA in the dtype of its input, as on a GPU, and in fp32
    inputs = torch.randn((3, 9, 24), generator=torch.Generator().manual_seed(2))
    rounded = lora(dtype=torch.bfloat16)
    exact = lora()
    exact[0].base_layer.load_state_dict({name: value.float() for name, value in rounded[0].base_layer.state_dict().items()})
    truth = results(exact, inputs)
    ours, theirs = results(rounded, inputs, autocast=True), results(by_peft(lora(dtype=torch.bfloat16)), inputs, autocast=True)
    assert ours[0].dtype == theirs[0].dtype == torch.bfloat16
    close(ours, theirs, 0.02)
    for name, gradient in truth[1].items():
        mine, peft_s = (float((found[1][name] - gradient).norm() / gradient.norm()) for found in (ours, theirs))
        assert mine < max(1.5 * peft_s, 0.01), name


@pytest.mark.skipif(not onednn_layers.layers_agree(torch.bfloat16), reason="NOT CHECKED: layers are prepacked with oneDNN on x86")
@pytest.mark.parametrize("small", [0, 2**17])
def test_packed_base_layers_are_fused(monkeypatch: pytest.MonkeyPatch, small: int) -> None:
    monkeypatch.setattr(lora_layers, "_SMALL", small)  # LoRA in the dtype of its input, and in fp32
    inputs = torch.randn((3, 9, 24), generator=torch.Generator().manual_seed(2)).bfloat16()
    found = []
    for pack in (True, False):
        model: Any = nn.Sequential(*(nn.Linear(24, 40, bias=bias, dtype=torch.bfloat16) for bias in (True, False))).requires_grad_(False)
        weights = [torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(3)) for layer in model]
        for layer, weight in zip(model, weights, strict=True):
            layer.weight.copy_(weight)
            layer.bias is None or layer.bias.fill_(0.5)
        if pack:
            onednn_layers.replace_layers(model)
        adapter.inject(model, ["0", "1"], rank=RANK, alpha=6.0, seed=1)
        for number, parameter in enumerate(adapter.parameters(model)):
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        assert {type(layer) for layer in model} == {FusedLoraLinear}
        both: Any = nn.Module()
        both.layers = model
        both.forward = lambda x, model=model: torch.cat(apply_together(x, list(model)), -1)
        found.append(results(both, inputs))
    assert found[0][1].keys() == found[1][1].keys() and len(found[0][1]) == 5
    assert float((found[0][0] - found[1][0]).norm()) <= 0.01 * float(found[1][0].norm())
    for name, gradient in found[1][1].items():
        assert found[0][1][name].dtype == gradient.dtype
        assert float((found[0][1][name] - gradient).norm()) <= 0.01 * float(gradient.norm()), name


class Counted(TorchDispatchMode):
    """Counts operators that start a kernel: neither views nor allocations."""

    FREE = ("view", "t", "transpose", "detach", "alias", "_unsafe_view", "new_empty")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ not in self.FREE
        return func(*args, **(kwargs or {}))


def test_it_starts_fewer_kernels_than_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_layers, "_SMALL", 0)  # as on a GPU
    counts = []
    for model in (lora(dtype=torch.bfloat16), by_peft(lora(dtype=torch.bfloat16))):
        inputs = torch.randn(3, 24, dtype=torch.bfloat16).requires_grad_()
        with Counted() as counted:
            with torch.autocast("cpu", torch.bfloat16):
                computed = model(inputs)
            computed.backward(torch.ones_like(computed))
        counts.append(counted.count)
    ours, theirs = counts
    assert ours <= theirs - 4, counts


def test_it_keeps_no_more_for_the_backward_pass_than_peft() -> None:
    kept = []
    for model in (lora(), by_peft(lora())):
        weights = {id(parameter) for parameter in model.parameters()}
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor, weights: set[int] = weights, sizes: dict[int, int] = sizes) -> torch.Tensor:
            whole = tensor if tensor._base is None else tensor._base
            if id(whole) not in weights:
                sizes[whole.data_ptr()] = whole.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = model(torch.randn(2, 50, 24).requires_grad_())
        kept.append(sum(sizes.values()))
        del result
    assert 0 < kept[0] <= kept[1]


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(
    ("kind", "ours"), [("dropout", FusedLoraLinear), ("int8", LoraLinear), ("3x3", LoraConv2d), ("3x3 bf16", LoraConv2d)]
)
def test_layers_that_are_not_fused_match_peft(kind: str, ours: type[LoraLayer], rslora: bool) -> None:
    torch.manual_seed(0)
    base: Any = nn.Conv2d(24, 40, 3, 2, padding=1) if kind.startswith("3x3") else nn.Linear(24, 40)
    if kind == "int8":
        base = quantised_layer(base.requires_grad_(False), "int8")
    dtype, dropout = (torch.bfloat16 if kind.endswith("bf16") else torch.float32), (0.5 if kind == "dropout" else 0.0)
    model: Any = nn.Sequential(base.to(dtype))
    adapter.inject(model, ["0"], rank=RANK, alpha=6.0, seed=1, dropout=dropout, rslora=rslora)
    assert type(model[0]) is ours
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ["0.lora_A.weight", "0.lora_B.weight"]
    assert {parameter.dtype for parameter in adapter.parameters(model)} == {torch.float32}
    for parameter in adapter.parameters(model):
        parameter.data = 0.3 * torch.randn(parameter.shape)
    theirs = by_peft(model, dropout=dropout, use_rslora=rslora)
    inputs = torch.randn((2, 24, 7, 5) if kind.startswith("3x3") else (6, 24)).to(dtype)
    found = []
    for each in (model.train(), theirs.train()):
        torch.manual_seed(5)
        found.append(results(each, inputs))
    close(found[0], found[1], 0.01 if dtype == torch.bfloat16 else 1e-6)
    close(results(model.eval(), inputs), results(theirs.eval(), inputs), 0.01 if dtype == torch.bfloat16 else 1e-6)


@pytest.mark.parametrize("kind", ["linear", "3x3"])
def test_initial_weights_match_peft(kind: str) -> None:
    begun = []
    for way in ("ours", "peft"):
        torch.manual_seed(3)
        layer: Any = nn.Linear if kind == "linear" else partial(nn.Conv2d, kernel_size=3)
        model: Any = nn.Sequential(layer(24, 40), layer(24, 16))
        if way == "ours":
            adapter.inject(model, ["1", "0"], rank=RANK, alpha=6.0, seed=1)
        else:
            torch.manual_seed(1)
            inject_adapter_in_model(LoraConfig(r=RANK, target_modules=["1", "0"]), model)
        begun.append([parameter for name, parameter in model.named_parameters() if "lora_" in name])
    assert len(begun[0]) == 4 and all(torch.equal(mine, theirs) for mine, theirs in zip(*begun, strict=True))


def test_all_linear_layers_of_a_unet_are_fused(tiny_checkpoint: Path) -> None:
    unet: Any = FAMILY.load_denoiser(open_checkpoint(str(tiny_checkpoint)), torch.float32)
    adapter.inject(unet, FAMILY.denoiser_targets(unet, "all-linear"), rank=RANK, alpha=4, seed=1)
    kinds = [type(module).__name__ for module in unet.modules() if isinstance(module, LoraLayer)]
    assert (kinds.count("FusedLoraLinear"), kinds.count("FusedLoraPointwise")) == (160, 32)


def test_channels_last_pointwise_convolution_is_fused() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(24, 40, 1)).requires_grad_(False)
    adapter.inject(model, ["0"], rank=RANK, alpha=6.0, seed=1)
    for parameter in adapter.parameters(model):
        parameter.data = 0.3 * torch.randn(parameter.shape)
    assert type(model[0]) is FusedLoraPointwise
    inputs = torch.randn((2, 24, 5, 3), generator=torch.Generator().manual_seed(2))
    for given in (inputs.to(memory_format=torch.channels_last), inputs):
        model.zero_grad()
        close(results(model, given), results(by_peft(model), given), 1e-6)


@pytest.mark.parametrize("drops", [False, True])
def test_layers_with_the_same_input_are_computed_together(drops: bool) -> None:
    torch.manual_seed(0)
    model: Any = nn.ModuleList([nn.Linear(24, width, bias=width != 16) for width in (16, 40, 8)]).requires_grad_(False)
    adapter.inject(model, ["0", "1"], rank=RANK, alpha=6.0, seed=1)
    adapter.inject(model, ["2"], rank=3, alpha=2.0, seed=1, dropout=0.5 * drops)
    for parameter in adapter.parameters(model):
        parameter.data = 0.3 * torch.randn(parameter.shape)
    inputs = torch.randn((2, 7, 24), generator=torch.Generator().manual_seed(2))
    found = []
    for way in (lambda x: apply_together(x, list(model)), lambda x: [layer(x) for layer in model]):
        for parameter in model.parameters():
            parameter.grad = None
        given = inputs.clone().requires_grad_()
        torch.manual_seed(5)
        computed = way(given)
        torch.stack([(each * torch.linspace(-1, 1, each.numel()).view(each.shape)).sum() for each in computed]).sum().backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        found.append([*(each.detach() for each in computed), given.grad, *gradients])
    assert len(found[0]) == len(found[1]) == 10
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


class WeightCasts(TorchDispatchMode):
    """Counts the casts of tensors that have the shape of one of ``weights``."""

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shapes, self.count = {weight.shape for weight in weights}, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._to_copy.default and args[0].shape in self.shapes
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("base", ["int8 linear", "fp8 linear", "int8 convolution", "convolution"])
def test_low_precision_copies_are_not_cast_behind_a_norm(base: str) -> None:
    """A norm gives fp32 under autocast: there the copies were cast up, and by autocast down again."""
    torch.manual_seed(0)
    kind, _, layer = base.rpartition(" ")
    plain = nn.Linear(24, 40) if layer == "linear" else nn.Conv2d(24, 40, 3, padding=1)
    model = nn.Sequential(quantised_layer(plain, kind) if kind else plain).requires_grad_(False)
    adapter.inject(model, ["0"], rank=RANK, alpha=6.0, seed=1)
    parameters = adapter.parameters(model)
    for parameter in parameters:
        parameter.data = 0.3 * torch.randn(parameter.shape)
    inputs = torch.randn(7, 24) if layer == "linear" else torch.randn(2, 24, 6, 5)
    expected, gradients = results(model, inputs, autocast=True)
    copies, casts = LowPrecisionCopies(model, torch.bfloat16), WeightCasts(parameters)
    with casts, copies, torch.autocast("cpu", torch.bfloat16):
        found = model(inputs)
    assert casts.count == 0
    assert torch.equal(found, expected)
    weighted = (found.float() * torch.linspace(-1, 1, found.numel()).view(found.shape)).sum()
    low = torch.autograd.grad(weighted, [copies.of(parameter) for parameter in parameters])
    for one, parameter in zip(low, parameters, strict=True):
        name = next(name for name, other in model.named_parameters() if other is parameter)
        assert one.dtype == torch.bfloat16 and torch.equal(one.float(), gradients[name])
