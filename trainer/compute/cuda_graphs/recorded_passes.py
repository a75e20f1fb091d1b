"""Forward and backward passes that are recorded for each set of shapes, checked, and replayed. Imports torch: import this module late."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import torch

from ...core.diagnosis import first_line, is_out_of_memory
from .. import torch_private
from ..acceleration import Inputs
from ..casting import LowPrecisionCopies
from ..self_check import gradients_agree, replace_small_weights
from .cuda_recorder import CudaRecorder, LossAndGradients, Recorder

Result = TypeVar("Result")


class RecordedPasses:
    """Recordings of the pass that ``compute`` describes, by the shapes of its inputs; ``run`` adds gradients to those of ``parameters``.

    ``compute`` returns the loss and the number that is differentiated in its place (fp16 scales it). It must not read anything back from
    the device, nor draw random numbers. The first ``eager_passes`` of each set of shapes are computed eagerly. The recording is compared
    with the last of them, and compared once more with weights of which none is close to zero. When recording fails, or the gradients
    differ, ``warn`` gets the reason, and all passes are computed eagerly from then on. With ``copies`` of the weights, recordings compute
    with these and leave gradients in their dtype.
    """

    def __init__(
        self,
        compute: Callable[[Inputs], tuple[torch.Tensor, torch.Tensor]],
        parameters: Sequence[torch.nn.Parameter],
        warn: Callable[[str], None],
        record: Recorder | None = None,
        copies: LowPrecisionCopies | None = None,
        eager_passes: int = 1,
    ) -> None:
        self._compute, self._parameters, self._warn, self._copies = compute, list(parameters), warn, copies
        self._leaves = self._parameters if copies is None else [copies.of(parameter) for parameter in self._parameters]
        self._record = record or CudaRecorder()
        self._eager_passes, self._seen = eager_passes, Counter[Any]()
        self._recordings: dict[Any, tuple[list[torch.Tensor], Callable[[], None], LossAndGradients]] = {}
        self._sums: list[torch.Tensor | None] = [None] * len(self._parameters)
        self._results: list[torch.Tensor | None] = [None] * len(self._parameters)  # of the last replay, whichever it was
        self.active = True

    def run(self, inputs: Inputs, eager: Callable[[], LossAndGradients] | None = None) -> torch.Tensor:
        """The loss, a tensor that the next call may overwrite. ``eager`` computes the same pass without a recording."""
        compute_eagerly = eager or (lambda: self._loss_and_gradients(inputs))
        self._refresh_copies()
        if not self.active:
            loss, gradients = compute_eagerly()
            self._add(gradients)
            return loss
        key = tuple((name, tensor.shape, tensor.dtype) for name, tensor in _tensors(inputs))
        if (known := self._recordings.get(key)) is not None:
            places, replay, (loss, gradients) = known
            for place, (_, tensor) in zip(places, _tensors(inputs), strict=True):
                place.copy_(tensor, non_blocking=True)
            replay()
            self._add(gradients)
            return loss
        loss, gradients = self._eagerly_beside_recordings(compute_eagerly)
        self._seen[key] += 1
        # a pass in which fp16 overflows has nothing to compare a recording with: the next one is recorded
        if self.active and self._seen[key] >= self._eager_passes and _are_finite(gradients):
            self._capture(key, inputs, gradients, compute_eagerly)
        self._add(gradients)
        return loss

    def forget(self) -> None:
        """Drop all recordings and their memory."""
        self._recordings.clear()
        self._results = [None] * len(self._parameters)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _refresh_copies(self) -> None:
        if self._copies is not None:
            self._copies.refresh()

    def _eagerly_beside_recordings(self, compute_eagerly: Callable[[], LossAndGradients]) -> LossAndGradients:
        """An eager pass; where memory runs out for it beside the recordings, without them."""
        try:
            return compute_eagerly()
        except Exception as error:
            if not self._recordings or not is_out_of_memory(error):
                raise
        # outside of the except: there, the failed pass would still hold its memory
        self._give_up("memory ran out beside the recordings of other image sizes")
        return compute_eagerly()

    def _give_up(self, reason: str) -> None:
        self.active = False
        self.forget()
        self._warn(reason)

    def _loss_and_gradients(self, inputs: Inputs) -> LossAndGradients:
        with self._copies or nullcontext():
            loss, differentiated = self._compute(inputs)
            return loss.detach(), list(torch.autograd.grad(differentiated, self._leaves, allow_unused=True))

    def _capture(
        self, key: Any, inputs: Inputs, expected: list[torch.Tensor | None], compute_eagerly: Callable[[], LossAndGradients]
    ) -> None:
        # a failed recording must be gone by the time its memory is given back: no local here refers to it, nor to an exception, whose
        # traceback would
        if reason := self._recording_problem(key, inputs, expected, compute_eagerly):
            self._give_up(reason)

    def _recording_problem(
        self, key: Any, inputs: Inputs, expected: list[torch.Tensor | None], compute_eagerly: Callable[[], LossAndGradients]
    ) -> str:
        """Record a pass and keep it; else the reason why it cannot be used, and nothing of it is kept."""
        places = _cloned(inputs)
        for index, gradient in enumerate(expected):
            if gradient is not None and self._results[index] is None:
                self._results[index] = torch.empty_like(gradient, dtype=self._leaves[index].dtype)
        try:
            # before a recording keeps its memory
            expected_too = self._with_small_weights_replaced(lambda: _on_cpu(compute_eagerly()[1]))
            replay, recorded = self._record(lambda: self._into_results(self._loss_and_gradients(places)))
            replay()
            same = gradients_agree(recorded[1], expected)
            if same and expected_too is not None:
                self._with_small_weights_replaced(replay)
                same = gradients_agree(recorded[1], expected_too)
            if same:
                self._recordings[key] = ([tensor for _, tensor in _tensors(places)], replay, recorded)
                return ""
            return "its gradients were not those of the eager pass"
        except Exception as error:  # a driver or a kernel library can refuse in any way
            return _first_cause(error)

    def _with_small_weights_replaced(self, compute: Callable[[], Result]) -> Result | None:
        """The result of ``compute`` while no weight is close to zero; None where that is so anyway."""
        try:
            with replace_small_weights(self._parameters) as replaced:
                if not replaced:
                    return None
                self._refresh_copies()
                return compute()
        finally:
            self._refresh_copies()

    def _into_results(self, computed: LossAndGradients) -> LossAndGradients:
        """A recording keeps the tensors it returns: all share the same ones, or each set of shapes would need its own gradients."""
        loss, gradients = computed
        shared = [None if gradient is None else result for result, gradient in zip(self._results, gradients, strict=True)]
        results = [result for result in shared if result is not None]
        _foreach(torch_private.foreach_copy, results, [gradient for gradient in gradients if gradient is not None])
        return loss, shared

    def _add(self, gradients: list[torch.Tensor | None]) -> None:
        """Into tensors of our own: the next replay overwrites those of a recording."""
        fresh: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        added: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for index, (parameter, gradient) in enumerate(zip(self._parameters, gradients, strict=True)):
            if gradient is None:
                continue
            if parameter.grad is None:
                place = self._sums[index]
                if place is None:
                    # strides as the parameter's, and not, say, channels last: fused optimisers go through both number by number
                    place = self._sums[index] = torch.empty_like(parameter)
                parameter.grad = place
                fresh[0].append(place)
                fresh[1].append(gradient)
            else:
                added[0].append(parameter.grad)
                added[1].append(gradient)
        _foreach(torch_private.foreach_copy, *fresh)
        if any(mine.dtype != new.dtype for mine, new in zip(*added, strict=True)):  # torch would add tensors of two kinds one by one
            converted = [torch.empty_like(mine) for mine in added[0]]
            _foreach(torch_private.foreach_copy, converted, added[1])
            added = (added[0], converted)
        _foreach(torch_private.foreach_add, *added)


def _foreach(operation: Callable[..., Any], mine: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> None:
    """``operation`` on all pairs, in two calls: pairs with the same strides and the others. One pair of the others would make torch handle
    every tensor of the call separately."""
    pairs = list(zip(mine, other, strict=True))
    alike = [pair for pair in pairs if pair[0].stride() == pair[1].stride()]
    for group in alike, [pair for pair in pairs if pair[0].stride() != pair[1].stride()]:
        if group:
            operation([pair[0] for pair in group], [pair[1] for pair in group])


def _on_cpu(gradients: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
    return [None if gradient is None else gradient.cpu() for gradient in gradients]


def _first_cause(error: BaseException) -> str:
    """The message of the first error: ending a recording fails because something in it failed before."""
    while error.__context__ is not None:
        error = error.__context__
    return first_line(error)


def _are_finite(gradients: Sequence[torch.Tensor | None]) -> bool:
    """Waits for the device."""
    there = [gradient for gradient in gradients if gradient is not None]
    return not there or bool(torch.isfinite(torch.stack(torch_private.foreach_norm([gradient.float() for gradient in there]))).all())


def _tensors(inputs: Inputs, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in inputs.items():
        if isinstance(value, dict):
            yield from _tensors(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value


def _cloned(inputs: Inputs) -> Inputs:
    return {
        name: _cloned(value) if isinstance(value, dict) else None if value is None else value.clone(memory_format=torch.preserve_format)
        for name, value in inputs.items()
    }
