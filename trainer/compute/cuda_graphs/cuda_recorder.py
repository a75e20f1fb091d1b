"""Recording one CUDA graph. Imports torch: import this module late."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from .. import torch_private

LossAndGradients = tuple[torch.Tensor, list["torch.Tensor | None"]]
"""The loss, and a gradient for each parameter; None where the loss does not depend on it."""
Recorder = Callable[[Callable[[], LossAndGradients]], tuple[Callable[[], None], LossAndGradients]]
"""Runs the function, and returns a function that repeats it into the same tensors, and these tensors."""


class CudaRecorder:
    """Records CUDA graphs that share their memory: only one of them runs at a time. All are recorded on one stream, because torch reuses
    freed memory within a stream only."""

    def __init__(self) -> None:
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._side = torch.cuda.Stream()

    def __call__(self, compute: Callable[[], LossAndGradients]) -> tuple[Callable[[], None], LossAndGradients]:
        """See :data:`Recorder`. Raises what capturing raises."""
        torch.cuda.empty_cache()  # memory of the eager pass is allocated again from the graphs' own pool
        current, side = torch.cuda.current_stream(), self._side
        side.wait_stream(current)
        with torch.cuda.stream(side):  # libraries initialise themselves for a new stream, which cannot be recorded
            compute()
        current.wait_stream(side)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        # other threads keep running: one reads the next batch into page-locked memory
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local"):
                recorded = compute()
        except Exception:
            with suppress(Exception):  # while it believes that a recording is in progress, torch frees no memory
                torch_private.end_allocation_to_pool(self._pool)
            raise
        finally:
            torch.cuda.set_stream(current)  # torch does not do this when ending the recording fails
        return graph.replay, recorded
