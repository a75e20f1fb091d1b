"""What a run changes: adapter weights, optimiser, schedule, moving average and gradient scaler. Saved states hold these."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapters import adapter
from ..adapters.ema import Ema
from ..core.errors import UserError
from .optimizers import follow_schedule

if TYPE_CHECKING:
    import torch
    from torch import nn


class TrainState:
    """The state after ``step`` optimiser steps. ``lock`` is held while it changes, and by whoever reads it from another thread."""

    def __init__(
        self, network: nn.Module, optimizer: Any, lr_scheduler: Any, ema: Ema | None, scaler: Any | None, lock: threading.RLock
    ) -> None:
        self.step = 0
        self.lock = lock
        self._network, self._optimizer, self._lr_scheduler, self._ema, self._scaler = network, optimizer, lr_scheduler, ema, scaler
        self._trained: dict[str, Any] | None = None  # the state while the weights in the network are averages

    def values(self) -> dict[str, Any]:
        """What a run resumes from, as of the last complete step. The caller holds ``lock``."""
        if self._trained is not None:
            return self._trained
        return {
            "ema": self._ema.state() if self._ema is not None else {},
            "lora": adapter.state(self._network),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._lr_scheduler.state_dict(),
            "scaler": self._scaler.state_dict() if self._scaler is not None else {},
        }

    def restore(self, step: int, values: dict[str, Any], folder: Path) -> None:
        """Put ``values`` back, which were saved in ``folder``. Raises UserError when they do not fit this run."""
        try:
            adapter.load_state(self._network, values["lora"])
            if self._ema is not None:
                self._ema.load_state(values["ema"])
            self._optimizer.load_state_dict(values["optimizer"])
            self._lr_scheduler.load_state_dict(values["schedule"])
            follow_schedule(self._optimizer, self._lr_scheduler)
            if self._scaler is not None and values.get("scaler"):
                self._scaler.load_state_dict(values["scaler"])
            if not (math.isfinite(float(values["average"])) and adapter.all_finite(values["lora"])):
                raise ValueError("it holds numbers that are not finite")
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            cause = str(error).splitlines()[0] if str(error) else repr(error)
            raise UserError(
                f"The saved state {folder} does not fit this run: {cause}.",
                "Delete that folder and start again: the run resumes from the state before it.",
                kind="state",
            ) from error
        self.step = step

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the network has the weights to use: the moving average, or those of a schedule-free optimiser, else the trained ones.

        Afterwards it has the trained weights again, to the bit. A stop inside saves those.
        """
        show = self._ema.show if self._ema is not None else getattr(self._optimizer, "eval", None)
        if show is None or self._trained is not None:  # the second: a stop came while they were in place
            yield
            return
        with self.lock:
            self._trained = self.values()
            show()
        try:
            yield
        finally:
            with self.lock:
                if self._ema is None:
                    self._optimizer.train()
                adapter.load_state(self._network, self._trained["lora"])
                self._trained = None

    def weights(self) -> dict[str, torch.Tensor]:
        """Copies of the weights to use, on the CPU, by module name."""
        with self.averaged():
            return adapter.state(self._network)
