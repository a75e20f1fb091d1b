"""The attention kernel is chosen by a call that really runs, and the choice changes nothing but speed."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.core.helpers import configuration, make_dataset, train_here
from trainer import events
from trainer.attention import choose_attention
from trainer.errors import UserError

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

    package, operators = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
    operators.memory_efficient_attention = counted  # type: ignore[attr-defined]
    package.ops = operators  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", operators)
    return calls


def test_one_that_works_is_taken_and_one_that_only_imports_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, plainly)
    assert choose_attention("auto", CPU, torch.float32) == ("xformers", "")
    assert choose_attention("sdpa", CPU, torch.float32) == ("sdpa", "")
    install(monkeypatch, broken)
    name, problem = choose_attention("auto", CPU, torch.float32)
    assert name == "sdpa" and "No operator found" in problem
    with pytest.raises(UserError, match="No operator found"):
        choose_attention("xformers", CPU, torch.float32)


def test_one_that_computes_something_else_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, lambda query, key, value: value * 2)
    assert choose_attention("auto", CPU, torch.float32) == ("sdpa", "its result is wrong")


def test_one_that_is_not_installed_is_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xformers", None)
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    monkeypatch.setattr("trainer.attention.importlib.import_module", _missing)
    assert choose_attention("auto", CPU, torch.float32) == ("sdpa", "")
    with pytest.raises(UserError, match="not installed"):
        choose_attention("xformers", CPU, torch.float32)


def _missing(name: str) -> Any:
    raise ModuleNotFoundError("No module named 'xformers'", name="xformers")


def test_a_run_with_xformers_has_the_losses_of_one_without(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_dataset(tmp_path, 3)
    calls = install(monkeypatch, plainly)
    with_it = train_here(configuration(tiny_checkpoint, folder, tmp_path / "a"))
    called = len(calls)
    without = train_here(configuration(tiny_checkpoint, folder, tmp_path / "b", {"training.attention": "sdpa"}))
    assert called > 32 and len(calls) == called  # two in each of 16 transformer blocks, every pass
    assert [step.loss for step in with_it.steps] == pytest.approx([step.loss for step in without.steps], rel=1e-5)
    assert [step.grad_norm for step in with_it.steps] == pytest.approx([step.grad_norm for step in without.steps], rel=1e-3)
    assert [plan(run.told).attention for run in (with_it, without)] == ["xformers", "sdpa"]


def test_a_broken_one_is_told_once_and_the_run_goes_on(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = install(monkeypatch, broken)
    trained = train_here(configuration(tiny_checkpoint, make_dataset(tmp_path, 1), tmp_path / "runs"))
    warnings = [event.message for event in trained.told if isinstance(event, events.Warning_) and "xformers" in event.message]
    assert trained.status == 0 and len(calls) == 1 and len(warnings) == 1
    assert plan(trained.told).attention == "sdpa"


def plan(told: list[events.Event]) -> events.Plan:
    return next(event for event in told if isinstance(event, events.Plan))
