"""The hash of a dataset: it covers what training depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from ...config.prepare_sections import TrainingHints
from ..layout import SCHEMA_VERSION
from .items import Item


def dataset_hash(rows: Iterable[tuple[Item, str]], header: dict[str, Any]) -> str:
    """SHA-256 of everything that affects training. ``rows``: items with the hash of their mask. ``header``: see ``hashed_header``."""
    digest = hashlib.sha256(json.dumps([SCHEMA_VERSION, header], sort_keys=True).encode())
    for item, mask in rows:
        fields = (
            item.sha256, item.caption, item.width, item.height, item.original_size, item.crop_top_left,
            item.repeats, mask, item.is_regularisation, item.weight,
        )  # fmt: skip
        digest.update(json.dumps(fields).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def hashed_header(trigger: str, class_description: str, resolution: int, training: TrainingHints) -> dict[str, Any]:
    """The part of the header that affects training."""
    hints = training.model_dump(mode="json")
    for name in ("wildcards", "keep_tokens_separator"):  # added later: datasets that do not use them keep their hash
        if hints[name] == TrainingHints.model_fields[name].default:
            del hints[name]
    return {"trigger": trigger, "class": class_description, "resolution": resolution, "training": hints}
