"""Scalars and images for TensorBoard and Weights & Biases, where they are installed, beside the event log."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ...config.run_config import RunConfig
from ...dataset import Dataset
from ...runs.run_folder import RunFolder

Warn = Callable[[str], None]


class Tracker(Protocol):
    """Takes scalars by name and images by path."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers as of ``step``."""

    def image(self, step: int, name: str, path: Path, caption: str) -> None:
        """A validation image as of ``step``."""

    def close(self) -> None:
        """Write what is still buffered."""


class TensorBoard:
    """Writes into the run folder's ``tensorboard``."""

    def __init__(self, folder: Path) -> None:
        writer: Any = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(str(folder / "tensorboard"))

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
    """One run there for each run here, resumed under the same id. Without an account on this machine it stays offline, in the run folder's
    ``wandb``, from where ``wandb sync`` uploads it."""

    def __init__(self, run: RunFolder, settings: dict[str, Any]) -> None:
        self._library: Any = importlib.import_module("wandb")
        mode = os.environ.get("WANDB_MODE") or ("online" if self._library.api.api_key else "offline")
        self._run = self._library.init(
            project=os.environ.get("WANDB_PROJECT", "animelora"),
            name=run.name,
            id=run.identity,
            resume="allow",
            dir=str(run.path),
            mode=mode,
            config=settings,
        )
        # a resumed run logs some steps a second time: the step is an axis, since wandb's own counter never goes back
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def image(self, step: int, name: str, path: Path, caption: str) -> None:
        self._run.log({"step": step, name: self._library.Image(str(path), caption=caption)})

    def close(self) -> None:
        self._run.finish()


class Trackers:
    """Several trackers. One that fails is dropped with a warning: a run must not fail because its log does."""

    def __init__(self, trackers: Iterable[Tracker], warn: Warn) -> None:
        self._open, self._warn = list(trackers), warn

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers as of ``step``."""
        self._each(lambda tracker: tracker.scalars(step, values))

    def image(self, step: int, name: str, path: Path, caption: str) -> None:
        """A validation image as of ``step``."""
        self._each(lambda tracker: tracker.image(step, name, path, caption))

    def close(self) -> None:
        """Write what is still buffered."""
        self._each(lambda tracker: tracker.close())

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for tracker in list(self._open):
            try:
                act(tracker)
            except Exception as error:
                self._open.remove(tracker)
                name = type(tracker).__name__
                self._warn(f"{name} failed ({type(error).__name__}: {error}); nothing more is logged there.")


def open_trackers(run: RunFolder, config: RunConfig, dataset: Dataset, base: str, warn: Warn) -> list[Tracker]:
    """The trackers that the configuration asks for; ``base`` is the name of the base checkpoint. Warns of one that cannot be started."""
    trackers: list[Tracker] = []

    def start(make: Callable[[], Tracker], name: str, consequence: str) -> None:
        try:
            trackers.append(make())
        except ImportError:
            warn(f"{name} is not installed; {consequence}.")
        except Exception as error:  # its own errors, of many kinds: no network, no permission, a version that does not fit
            warn(f"{name} could not be started ({type(error).__name__}: {error}); nothing is logged there.")

    if config.output.tensorboard:
        start(lambda: TensorBoard(run.path), "TensorBoard", "no TensorBoard log is written (pip install tensorboard)")
    if config.output.wandb:
        # everything that determines the result; no paths of this machine
        settings = {**config.identity(), "dataset": {"name": dataset.name, "hash": dataset.hash}, "base": base}
        start(lambda: WeightsAndBiases(run, settings), "wandb", "nothing is logged there (pip install wandb)")
    return trackers
