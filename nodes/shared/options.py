"""Shared by the options nodes of Train LoRA, which can be chained: each adds its settings to those of the nodes before it."""

from __future__ import annotations

import json
from typing import Any

from comfy_api.latest import io

from .inputs.socket_types import TRAIN_OPTIONS, TrainOptions, options_from_socket
from .schema import field
from .widgets.widget import merged


def earlier() -> io.Input:
    """The input for another options node."""
    return field(TRAIN_OPTIONS, "options", "Settings of another options node, to combine with these.", optional=True)


def extended_options(before: Any, sections: dict[str, Any]) -> io.NodeOutput:
    """The settings of the connected options node, replaced by ``sections`` where both set the same key. Train LoRA validates them."""
    options = options_from_socket(before, TrainOptions)
    known = json.loads(options.settings) if options is not None else {}
    return io.NodeOutput(TrainOptions(json.dumps(merged(known, sections), sort_keys=True)))
