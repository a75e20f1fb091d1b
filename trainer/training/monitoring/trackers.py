"""Where a run's numbers and images go beside the event stream: TensorBoard and Weights & Biases, where they are installed."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ...runs import events
from ..job import Job


class Tracker(Protocol):
    """Takes scalars by name and images by path."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers as of ``step``."""

    def image(self, step: int, name: str, path: Path, caption: str) -> None:
        """A validation image as of ``step``."""

    def close(self) -> None:
        """Write what is still held back."""


class TensorBoard:
    """Writes into the run folder's ``tensorboard``."""

    def __init__(self, job: Job) -> None:
        writer: Any = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(str(job.run.path / "tensorboard"))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, path: Path, caption: str) -> None:
        import numpy as np

        from ...core.files.image_file import load_image

        self._writer.add_image(name, np.asarray(load_image(path)), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """One run there for each run here, continued under the same id. Without an account on this machine it stays offline, in the run
    folder's ``wandb``, from where ``wandb sync`` uploads it."""

    def __init__(self, job: Job) -> None:
        self._library: Any = importlib.import_module("wandb")
        mode = os.environ.get("WANDB_MODE") or ("online" if self._library.api.api_key else "offline")
        self._run = self._library.init(
            project=os.environ.get("WANDB_PROJECT", "animelora"),
            name=job.config.name,
            id=job.run.path.name.rsplit("-", 1)[-1],
            resume="allow",
            dir=str(job.run.path),
            mode=mode,
            # what determines the result; no paths of this machine
            config={**job.config.identity(), "dataset": {"name": job.dataset.name, "hash": job.dataset.hash}, "base": job.checkpoint.name},
        )
        # steps that a continued run does again are told again: the step is an axis, not wandb's own counter, which never goes back
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def image(self, step: int, name: str, path: Path, caption: str) -> None:
        self._run.log({"step": step, name: self._library.Image(str(path), caption=caption)})

    def close(self) -> None:
        self._run.finish()


class Trackers:
    """All trackers that the configuration asks for. One that fails is told of once and left out: no run ends for its log's sake."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._open: list[Tracker] = []
        if not job.writes:
            return
        output = job.config.output
        if output.tensorboard:
            self._start(TensorBoard, "TensorBoard", "no TensorBoard log is written (pip install tensorboard)")
        if output.wandb:
            self._start(WeightsAndBiases, "wandb", "nothing is logged there (pip install wandb)")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers as of ``step``."""
        self._each(lambda tracker: tracker.scalars(step, values))

    def image(self, step: int, name: str, path: Path, caption: str) -> None:
        """A validation image as of ``step``."""
        self._each(lambda tracker: tracker.image(step, name, path, caption))

    def close(self) -> None:
        """Write what is still held back."""
        self._each(lambda tracker: tracker.close())

    def _start(self, tracker: Callable[[Job], Tracker], name: str, without: str) -> None:
        try:
            self._open.append(tracker(self._job))
        except ImportError:
            self._job.emit(events.Warning_(f"{name} is not installed; {without}."))
        except Exception as error:  # its own errors, of many kinds: no network, no rights, a version that does not fit
            self._job.emit(events.Warning_(f"{name} could not be started ({type(error).__name__}: {error}); nothing is logged there."))

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for tracker in list(self._open):
            try:
                act(tracker)
            except Exception as error:
                self._open.remove(tracker)
                name = type(tracker).__name__
                self._job.emit(events.Warning_(f"{name} failed ({type(error).__name__}: {error}); nothing more is logged there."))
