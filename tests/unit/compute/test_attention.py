"""The attention kernel is chosen by a call that really runs, and the choice changes nothing but speed."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.training_helpers import configuration, make_dataset, train_here
from trainer.adapters import adapter
from trainer.compute import accelerations, flash_attention
from trainer.compute.acceleration import Context
from trainer.compute.attention_choice import choose_attention
from trainer.compute.attention_processor import Processor
from trainer.core.errors import UserError
from trainer.families import open_checkpoint
from trainer.families.sd1 import FAMILY
from trainer.runs import events

CPU = torch.device("cpu")


def plainly(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """softmax(q kᵀ / √d) v on (batch, tokens, heads, channels), xformers' layout."""
    scores = torch.einsum("bqhc,bkhc->bhqk", query, key).float() / query.shape[-1] ** 0.5
    return torch.einsum("bhqk,bkhc->bqhc", scores.softmax(dim=-1).to(value.dtype), value)


def broken(*_: Any) -> torch.Tensor:
    raise NotImplementedError("No operator found for `memory_efficient_attention_forward` with inputs:\n  device=cpu")


def install(monkeypatch: pytest.MonkeyPatch, kernel: Callable[..., torch.Tensor]) -> list[int]:
    """An ``xformers`` whose attention is ``kernel``; counts its calls."""
    calls: list[int] = []

    def counted(*arguments: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return kernel(*arguments)

    from diffusers import UNet2DConditionModel  # noqa: F401 - libraries look for xformers when they are imported, for one with a spec

    package, operators = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
    operators.memory_efficient_attention = counted  # type: ignore[attr-defined]
    package.ops = operators  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", operators)
    return calls


def test_auto_takes_xformers_only_if_a_call_works(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, plainly)
    assert choose_attention("auto", CPU, torch.float32) == ("xformers", "")
    assert choose_attention("sdpa", CPU, torch.float32) == ("sdpa", "")
    install(monkeypatch, broken)
    name, problem = choose_attention("auto", CPU, torch.float32)
    assert name == "sdpa" and "No operator found" in problem
    with pytest.raises(UserError, match="No operator found"):
        choose_attention("xformers", CPU, torch.float32)


def test_xformers_with_wrong_results_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, lambda query, key, value: value * 2)
    assert choose_attention("auto", CPU, torch.float32) == ("sdpa", "its result is wrong")


def test_missing_xformers_causes_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xformers", None)
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    monkeypatch.setattr("trainer.compute.attention_choice.importlib.import_module", _missing)
    assert choose_attention("auto", CPU, torch.float32) == ("sdpa", "")
    with pytest.raises(UserError, match="not installed"):
        choose_attention("xformers", CPU, torch.float32)


def _missing(name: str) -> Any:
    raise ModuleNotFoundError("No module named 'xformers'", name="xformers")


@pytest.mark.seconds
def test_xformers_does_not_change_losses(shallow_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_dataset(tmp_path, 3)
    calls = install(monkeypatch, plainly)
    with_it = train_here(configuration(shallow_checkpoint, folder, tmp_path / "a"))
    called = len(calls)
    without = train_here(configuration(shallow_checkpoint, folder, tmp_path / "b", {"training.attention": "sdpa"}))
    assert called > 32 and len(calls) == called  # two in each of 16 transformer blocks, every pass
    assert [step.loss for step in with_it.steps] == pytest.approx([step.loss for step in without.steps], rel=1e-5)
    assert [step.grad_norm for step in with_it.steps] == pytest.approx([step.grad_norm for step in without.steps], rel=1e-3)
    assert [plan(run.told).attention for run in (with_it, without)] == ["xformers", "sdpa"]


@pytest.mark.seconds
def test_broken_xformers_causes_one_warning(shallow_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = install(monkeypatch, broken)
    trained = train_here(configuration(shallow_checkpoint, make_dataset(tmp_path, 1), tmp_path / "runs"))
    warnings = [event.message for event in trained.told if isinstance(event, events.Warning_) and "xformers" in event.message]
    assert trained.status == 0 and len(calls) == 1 and len(warnings) == 1
    assert plan(trained.told).attention == "sdpa"


def plan(received: list[events.Event]) -> events.Plan:
    return next(event for event in received if isinstance(event, events.Plan))


def test_this_torch_has_the_operators() -> None:
    assert flash_attention.operators_agree(torch.bfloat16), (
        "a torch that lost them would train more slowly, and nothing else here would say so"
    )


@pytest.mark.parametrize("tokens", [(16, 16), (16, 77), (1, 5), (300, 300)])
def test_half_precision_cpu_attention_is_as_accurate_as_torchs(tokens: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = [(2, 3, count, 40) for count in (tokens[0], tokens[1], tokens[1])]
    inputs = [torch.randn(shape, generator=draw).bfloat16() for shape in shapes]
    found = []
    ways: list[tuple[Callable[..., torch.Tensor], list[torch.Tensor]]] = [
        (torch.nn.functional.scaled_dot_product_attention, [each.float() for each in inputs]),
        (torch.nn.functional.scaled_dot_product_attention, inputs),
        (flash_attention.attend, inputs),
    ]
    for way, given in ways:
        leaves = [each.clone().requires_grad_() for each in given]
        computed = way(*leaves)
        (computed.float() * torch.linspace(-1, 1, computed.numel()).view(computed.shape)).sum().backward()
        assert all(each.grad is not None and each.grad.dtype == each.dtype for each in leaves)
        found.append([computed.detach().float(), *(each.grad.float() for each in leaves if each.grad is not None)])
    truth, theirs, ours = found
    assert torch.equal(ours[0], theirs[0])
    other = [each.transpose(-1, -2).contiguous().transpose(-1, -2) for each in inputs]  # in which channels do not lie side by side
    assert torch.equal(flash_attention.attend(*other).float(), ours[0])
    for true, torch_s, mine in zip(truth[1:], theirs[1:], ours[1:], strict=True):
        apart = [float((each - true).norm() / true.norm().clamp_min(1e-6)) for each in (mine, torch_s)]
        assert apart[0] < max(1.05 * apart[1], 0.004), apart


@pytest.mark.seconds
def test_unet_with_cpu_attention_matches_torchs_attention(tiny_checkpoint: Path) -> None:
    """And queries, keys and values that are computed together are those of diffusers."""
    config = configuration(tiny_checkpoint, Path("dataset"), Path("runs"))
    draw = torch.Generator().manual_seed(0)
    latents, context = torch.randn(2, 4, 16, 16, generator=draw), torch.randn(2, 77, 64, generator=draw)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.03)):
        found = []
        for ours in (True, False):
            unet: Any = FAMILY.load_denoiser(open_checkpoint(str(tiny_checkpoint)), dtype)
            if ours:
                accelerations.prepare(["attention", "cpu_attention"], unet, Context(config, CPU, dtype))
                processors = [module.processor for module in unet.modules() if hasattr(module, "to_q")]
                assert len(processors) == 32 and all(type(processor) is Processor for processor in processors)
            adapter.inject(unet, FAMILY.denoiser_targets(unet, "all-linear"), rank=4, alpha=4, seed=1)
            for index, parameter in enumerate(adapter.parameters(unet)):
                parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
            prediction = unet.train()(latents.to(dtype), torch.tensor([5, 900]), context.to(dtype)).sample
            prediction.float().square().mean().backward()
            found.append([prediction.detach().float(), *(parameter.grad for parameter in adapter.parameters(unet))])
        for mine, theirs in (found[0][:1], found[1][:1]), (found[0][1:], found[1][1:]):
            apart = sum(float((a - b).square().sum()) for a, b in zip(mine, theirs, strict=True)) ** 0.5
            size = sum(float(a.square().sum()) for a in theirs) ** 0.5
            assert size > 0 and apart <= tolerance * size


def test_a_torch_without_the_operators_uses_its_own_attention(shallow_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash_attention._Attention, "forward", broken)
    assert not flash_attention.operators_agree.__wrapped__(torch.bfloat16)
    monkeypatch.setattr(flash_attention, "operators_agree", lambda dtype: False)
    unet: Any = FAMILY.load_denoiser(open_checkpoint(str(shallow_checkpoint)), torch.bfloat16)
    context = Context(configuration(shallow_checkpoint, Path("dataset"), Path("runs")), CPU, torch.bfloat16)
    accelerations.prepare(["attention", "cpu_attention"], unet, context)
    kernels = [module.processor._kernel for module in unet.modules() if hasattr(module, "to_q")]
    inputs = [torch.randn(1, 5, 2, 8).bfloat16() for _ in range(3)]
    assert kernels and torch.allclose(kernels[0](*inputs), plainly(*inputs), atol=0.02)
