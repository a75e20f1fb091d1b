"""Combine Datasets: train two prepared datasets together, with factors for repeats and loss weight."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from .shared.failures import canvas_errors
from .shared.inputs.socket_types import DATASET, DatasetHandle, dataset_from_socket
from .shared.schema import field, result, schema


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
                _repeats("first"),
                _weight("first"),
                _repeats("second"),
                _weight("second"),
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


def _repeats(which: str) -> io.Input:
    return field(
        io.Int,
        f"{which}_repeats",
        f"How many times an epoch shows each image of the {which} dataset.",
        default=1,
        min=1,
        max=1000,
        optional=True,
    )


def _weight(which: str) -> io.Input:
    return field(
        io.Float,
        f"{which}_weight",
        f"How much each image of the {which} dataset counts in the loss. 0.5 is half, 0 is nothing.",
        default=1.0,
        min=0.0,
        max=100.0,
        step=0.05,
        round=False,
        optional=True,
    )
