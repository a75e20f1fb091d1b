"""What the options nodes of Train LoRA share: they can be chained in any order, and each adds its settings to those before it."""

from __future__ import annotations

import json
from typing import Any

from comfy_api.latest import io

from .inputs.socket_types import TRAIN_OPTIONS, TrainOptions, as_options
from .schema import field
from .widgets.widget import merged


def earlier() -> io.Input:
    """The socket for another options node in front of this one."""
    return field(TRAIN_OPTIONS, "options", "Settings of another options node, to combine with these.", optional=True)


def extended(before: Any, sections: dict[str, Any]) -> io.NodeOutput:
    """``sections`` of the run configuration laid over those of the options node in front; Train LoRA validates them with its own."""
    options = as_options(before, TrainOptions)
    known = json.loads(options.settings) if options is not None else {}
    return io.NodeOutput(TrainOptions(json.dumps(merged(known, sections), sort_keys=True)))
