"""Forward and backward pass recorded once for each set of shapes, and replayed: a CUDA graph. Imports torch: import this module late.

At batch 1 a fast GPU is done with a kernel before Python has started the next one. A replay starts all of a pass's kernels, some thousands,
with one call; see "Accelerating PyTorch with CUDA Graphs" (Nguyen, Carilli et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from typing import Any, TypeVar

import torch

from ..core.diagnosis import first_line, is_out_of_memory
from .casting import LowCopies
from .self_check import gradients_agree, weights_that_count

Result = TypeVar("Result")
Inputs = dict[str, Any]
"""Tensors on the device, None, or tables of such."""
Passed = tuple[torch.Tensor, list["torch.Tensor | None"]]
"""The loss, and a gradient for each parameter; None where the loss does not depend on it."""
Recorder = Callable[[Callable[[], Passed]], tuple[Callable[[], None], Passed]]
"""Runs what it is given, and returns what repeats it into the same tensors, and these."""


class Captured:
    """``run`` adds a pass's gradients to those of ``parameters``.

    ``compute`` gives, from inputs, the loss and what is differentiated in its place (fp16 scales it); it must read nothing back from the
    device and draw nothing. The first pass of each set of shapes is computed as written, and its recording is compared with it, once more
    with weights of which none is next to zero. When recording fails, or the gradients differ, ``failed`` is told why and everything is
    computed as written from then on. ``copies``: of weights; passes compute with them and leave gradients in their dtype.
    """

    def __init__(
        self,
        compute: Callable[[Inputs], tuple[torch.Tensor, torch.Tensor]],
        parameters: Sequence[torch.nn.Parameter],
        failed: Callable[[str], None],
        record: Recorder | None = None,
        copies: LowCopies | None = None,
    ) -> None:
        self._compute, self._parameters, self._failed, self._copies = compute, list(parameters), failed, copies
        self._leaves = self._parameters if copies is None else [copies.of(parameter) for parameter in self._parameters]
        self._record = record or CudaRecorder()
        self._recorded: dict[Any, tuple[list[torch.Tensor], Callable[[], None], Passed]] = {}
        self._sums: list[torch.Tensor | None] = [None] * len(self._parameters)
        self._results: list[torch.Tensor | None] = [None] * len(self._parameters)  # of the last replay, whichever it was
        self.active = True

    def run(self, inputs: Inputs, *, as_written: bool = False) -> torch.Tensor:
        """The loss, a tensor that the next call may overwrite; ``as_written``: without recordings."""
        self._refresh()
        if as_written or not self.active:
            loss, gradients = self._in_the_room_there_is(inputs)
            self._add(gradients)
            return loss
        key = tuple((name, tensor.shape, tensor.dtype) for name, tensor in _tensors(inputs))
        if (known := self._recorded.get(key)) is not None:
            places, replay, (loss, gradients) = known
            for place, (_, tensor) in zip(places, _tensors(inputs), strict=True):
                place.copy_(tensor, non_blocking=True)
            replay()
            self._add(gradients)
            return loss
        loss, gradients = self._in_the_room_there_is(inputs)
        # a pass in which fp16 overflows has nothing to compare a recording with: the next one is recorded
        if self.active and _are_finite(gradients):
            self._capture(key, inputs, gradients)
        self._add(gradients)
        return loss

    def _refresh(self) -> None:
        if self._copies is not None:
            self._copies.refresh()

    def forget(self) -> None:
        """Drop all recordings and their memory: something that they contain has changed."""
        self._recorded.clear()
        self._results = [None] * len(self._parameters)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _in_the_room_there_is(self, inputs: Inputs) -> Passed:
        """A pass as written; where memory runs out for it beside recordings, without them."""
        try:
            return self._passed(inputs)
        except Exception as error:
            if not self._recorded or not is_out_of_memory(error):
                raise
        # outside of the except: there, the failed pass would still hold its memory
        self._give_up("memory ran out beside the recordings of other sizes of pictures")
        return self._passed(inputs)

    def _give_up(self, reason: str) -> None:
        self.active = False
        self.forget()
        self._failed(reason)

    def _passed(self, inputs: Inputs) -> Passed:
        with self._copies or nullcontext():
            loss, differentiated = self._compute(inputs)
            return loss.detach(), list(torch.autograd.grad(differentiated, self._leaves, allow_unused=True))

    def _capture(self, key: Any, inputs: Inputs, expected: list[torch.Tensor | None]) -> None:
        # what failed is gone by the time its memory is given back: no local here refers to it, nor to an exception, whose trace would
        if reason := self._recording_problem(key, inputs, expected):
            self._give_up(reason)

    def _recording_problem(self, key: Any, inputs: Inputs, expected: list[torch.Tensor | None]) -> str:
        """Record a pass and keep it; else why it cannot be used, and nothing of it is kept."""
        places = _cloned(inputs)
        for index, gradient in enumerate(expected):
            if gradient is not None and self._results[index] is None:
                self._results[index] = torch.empty_like(gradient)
        try:
            wanted = self._with_weights_that_count(lambda: _on_cpu(self._passed(inputs)[1]))  # before a recording keeps its memory
            replay, passed = self._record(lambda: self._into_results(self._passed(places)))
            replay()
            same = gradients_agree(passed[1], expected)
            if same and wanted is not None:
                self._with_weights_that_count(replay)
                same = gradients_agree(passed[1], wanted)
            if same:
                self._recorded[key] = ([tensor for _, tensor in _tensors(places)], replay, passed)
                return ""
            return "its gradients were not those of the pass as written"
        except Exception as error:  # a driver or a kernel library can refuse in any way
            return _first_cause(error)

    def _with_weights_that_count(self, compute: Callable[[], Result]) -> Result | None:
        """What ``compute`` gives while no weight is next to zero; None where that is so anyway."""
        try:
            with weights_that_count(self._parameters) as changed:
                if not changed:
                    return None
                self._refresh()
                return compute()
        finally:
            self._refresh()

    def _into_results(self, passed: Passed) -> Passed:
        """A recording keeps the tensors that it gives: all give the same ones, or each set of shapes would hold gradients of its own."""
        loss, gradients = passed
        given = [None if gradient is None else result for result, gradient in zip(self._results, gradients, strict=True)]
        results = [result for result in given if result is not None]
        _each(torch._foreach_copy_, results, [gradient for gradient in gradients if gradient is not None])
        return loss, given

    def _add(self, gradients: list[torch.Tensor | None]) -> None:
        """Into tensors of our own: the next replay overwrites a recording's."""
        fresh: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        added: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for index, (parameter, gradient) in enumerate(zip(self._parameters, gradients, strict=True)):
            if gradient is None:
                continue
            if parameter.grad is None:
                place = self._sums[index]
                if place is None:
                    # as the parameter lies, and not, say, channels last: fused optimisers go through both number by number
                    place = self._sums[index] = torch.empty_like(parameter)
                parameter.grad = place
                fresh[0].append(place)
                fresh[1].append(gradient)
            else:
                added[0].append(parameter.grad)
                added[1].append(gradient)
        _each(torch._foreach_copy_, *fresh)
        if any(mine.dtype != new.dtype for mine, new in zip(*added, strict=True)):  # torch would add tensors of two kinds one by one
            whole = [torch.empty_like(mine) for mine in added[0]]
            _each(torch._foreach_copy_, whole, added[1])
            added = (added[0], whole)
        _each(torch._foreach_add_, *added)


class CudaRecorder:
    """Records CUDA graphs that share their memory: only one of them runs at a time, and all are recorded on one stream, as torch hands
    freed memory on within a stream only."""

    def __init__(self) -> None:
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._side = torch.cuda.Stream()

    def __call__(self, compute: Callable[[], Passed]) -> tuple[Callable[[], None], Passed]:
        """See :data:`Recorder`. Raises what capturing raises."""
        torch.cuda.empty_cache()  # what the pass as written took is taken again from the graphs' own memory
        current, side = torch.cuda.current_stream(), self._side
        side.wait_stream(current)
        with torch.cuda.stream(side):  # libraries set themselves up for a new stream, which cannot be recorded
            compute()
        current.wait_stream(side)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        # other threads go on: one reads the next batch into page-locked memory
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local"):
                passed = compute()
        except Exception:
            with suppress(Exception):  # as long as it believes that a recording goes on, torch frees nothing for one that lacks memory
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self._pool)
            raise
        finally:
            torch.cuda.set_stream(current)  # which torch leaves undone where the recording's end fails
        return graph.replay, passed


def _each(operation: Callable[..., Any], mine: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> None:
    """``operation`` of torch's foreach on all pairs: those that lie alike apart, for one other pair makes torch take each alone."""
    pairs = list(zip(mine, other, strict=True))
    alike = [pair for pair in pairs if pair[0].stride() == pair[1].stride()]
    for group in alike, [pair for pair in pairs if pair[0].stride() != pair[1].stride()]:
        if group:
            operation([pair[0] for pair in group], [pair[1] for pair in group])


def _on_cpu(gradients: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
    return [None if gradient is None else gradient.cpu() for gradient in gradients]


def _first_cause(error: BaseException) -> str:
    """The end of a recording fails because something in it did: what that said."""
    while error.__context__ is not None:
        error = error.__context__
    return first_line(error)


def _are_finite(gradients: Sequence[torch.Tensor | None]) -> bool:
    """Waits for the device."""
    there = [gradient for gradient in gradients if gradient is not None]
    return not there or bool(torch.isfinite(torch.stack(torch._foreach_norm([gradient.float() for gradient in there]))).all())


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
