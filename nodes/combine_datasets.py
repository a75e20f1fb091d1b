"""Combine Datasets: train two prepared datasets together, with factors for repeats and loss weight."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..trainer.config.sections.dataset import MoreDataset
from ..trainer.config.setting import settings_of
from .shared.failures import canvas_errors
from .shared.inputs.socket_types import DATASET, DatasetHandle, dataset_from_socket
from .shared.schema import field, result, schema
from .shared.widgets.widget import Widget

_REPEATS = Widget("repeats", "repeats", max=1000)
_WEIGHT = Widget("weight", "loss_weight", step=0.05)


class CombineDatasets(io.ComfyNode):
    """Schema and call of Combine Datasets."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help."""
        return schema(
            "CombineDatasets",
            "Combine Datasets",
            "Two datasets for one LoRA, for example a style and a character. Each keeps its trigger word and its settings. "
            "Chain this node for more.",
            [
                field(DATASET, "first", "A dataset, from Dataset Prep or from this node."),
                field(DATASET, "second", "The dataset to train together with it."),
                _factor(io.Int, "first", _REPEATS),
                _factor(io.Float, "first", _WEIGHT),
                _factor(io.Int, "second", _REPEATS),
                _factor(io.Float, "second", _WEIGHT),
            ],
            [result(DATASET, "dataset", "Both datasets, for Train LoRA.")],
            search=["several datasets", "dataset weights", "merge datasets", "multiple concepts"],
        )

    @classmethod
    def execute(
        cls,
        first: Any,
        second: Any,
        first_repeats: int = 1,
        first_weight: float = 1.0,
        second_repeats: int = 1,
        second_weight: float = 1.0,
    ) -> io.NodeOutput:
        """A handle to the datasets of both inputs, in order."""
        with canvas_errors():
            parts = (
                *_scaled(dataset_from_socket(first), first_repeats, first_weight),
                *_scaled(dataset_from_socket(second), second_repeats, second_weight),
            )
            together = hashlib.sha256(json.dumps([[part.hash, part.repeats, part.loss_weight] for part in parts]).encode())
            count = sum(part.count for part in parts)
            first = parts[0]
            return io.NodeOutput(
                replace(first, hash=together.hexdigest(), count=count, more=parts[1:], own_hash=first.hash, own_count=first.count)
            )


def _scaled(dataset: DatasetHandle, repeats: int, weight: float) -> tuple[DatasetHandle, ...]:
    """The single datasets of ``dataset`` with repeats and loss weight multiplied by these factors."""
    return tuple(replace(part, repeats=part.repeats * repeats, loss_weight=part.loss_weight * weight) for part in dataset.parts())


def _factor(kind: Any, which: str, widget: Widget) -> io.Input:
    """A number for the ``which`` dataset, with the limits and the text of the setting that it multiplies."""
    arguments = widget.arguments(settings_of(MoreDataset)[widget.key])
    tooltip = arguments.pop("tooltip").replace("this dataset", f"the {which} dataset")
    return field(kind, f"{which}_{widget.name}", tooltip, **arguments)
