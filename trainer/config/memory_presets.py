"""Memory presets: settings with which a run fits a GPU of a given size.

A preset only sets keys that were left unset (``PRESET_KEYS``), and nothing that changes what the LoRA learns: neither batch, rank nor
resolution. Micro-batches, checkpointing and swapped blocks give the same gradients, an 8-bit base and optimizer nearly the same.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from .run_config import PRESET_KEYS, RunConfig, parse

SIZES = {"24gb": 24.0, "16gb": 16.0, "12gb": 12.0, "8gb": 8.0, "6gb": 6.0}  # GB, from the fastest preset to the one that needs least memory
_FAST: dict[str, Any] = {"training.gradient_checkpointing": False}
_CHECKPOINTED: dict[str, Any] = {"training.gradient_checkpointing": True}
_ONE_AT_A_TIME: dict[str, Any] = {**_CHECKPOINTED, "training.micro_batch_size": 1}
_PACKED: dict[str, Any] = {**_ONE_AT_A_TIME, "training.base_precision": "int8", "optimizer.name": "adamw8bit"}
# By the memory for one image at the family's resolution (512 pixels; for all but SD 1.x and 2.x 1024); a test compares every estimate with
# its size.
_SMALL: dict[str, dict[str, Any]] = {
    "24gb": {**_FAST, "training.micro_batch_size": 4},
    "16gb": {**_FAST, "training.micro_batch_size": 2},
    "12gb": {**_FAST, "training.micro_batch_size": 1},
    "8gb": {**_FAST, "training.micro_batch_size": 1},
    "6gb": _ONE_AT_A_TIME,
}
_LARGE: dict[str, dict[str, Any]] = {
    "24gb": {**_FAST, "training.micro_batch_size": 1},
    "16gb": {**_CHECKPOINTED, "training.micro_batch_size": 4},
    "12gb": {**_CHECKPOINTED, "training.micro_batch_size": 2},
    "8gb": _PACKED,
    "6gb": _PACKED,
}
_ANIMA: dict[str, dict[str, Any]] = {
    "24gb": {**_FAST, "training.micro_batch_size": 1},
    "16gb": {**_CHECKPOINTED, "training.micro_batch_size": 4},
    "12gb": {**_CHECKPOINTED, "training.micro_batch_size": 2},
    "8gb": _ONE_AT_A_TIME,
    "6gb": {**_ONE_AT_A_TIME, "training.swap_blocks": 26},
}
_LUMINA2: dict[str, dict[str, Any]] = {
    "24gb": {**_CHECKPOINTED, "training.micro_batch_size": 8},
    "16gb": {**_CHECKPOINTED, "training.micro_batch_size": 4},
    "12gb": {**_CHECKPOINTED, "training.micro_batch_size": 2},
    "8gb": {**_ONE_AT_A_TIME, "training.swap_blocks": 8},
    "6gb": {**_ONE_AT_A_TIME, "training.swap_blocks": 26},
}
# by the family's preset group
PRESETS: dict[str, dict[str, dict[str, Any]]] = {"sd15": _SMALL, "sdxl": _LARGE, "anima": _ANIMA, "lumina2": _LUMINA2}


def preset(size: str, group: str) -> dict[str, Any]:
    """Keys and values of the preset for a GPU of ``size`` (a key of ``SIZES``) and models of ``group``.

    The 8-bit optimizer is included only if its package is installed, so that no preset makes a run fail.
    """
    values = dict(PRESETS.get(group, _LARGE)[size])
    if importlib.util.find_spec("bitsandbytes") is None:
        values.pop("optimizer.name", None)
    return values


def with_preset(config: RunConfig, size: str, group: str) -> RunConfig:
    """``config`` with the preset's values for keys that were left unset; afterwards every key of ``PRESET_KEYS`` is set."""
    data, chosen = config.to_data(), preset(size, group)
    if not config.can_swap_blocks:
        chosen.pop("training.swap_blocks", None)
    whole = config.model_dump(mode="json")
    for key in PRESET_KEYS:
        section, name = key.split(".")
        data[section].setdefault(name, chosen.get(key, whole[section][name]))
    return parse(data)


def is_settled(config: RunConfig) -> bool:
    """Whether a preset has nothing left to set."""
    return config.training.memory == "none" or all(
        key.split(".")[1] in getattr(config, key.split(".")[0]).model_fields_set for key in PRESET_KEYS
    )


def settled(config: RunConfig, group: str, total_gb: float, estimate: Callable[[RunConfig], float]) -> RunConfig:
    """``config`` with its memory preset filled in.

    ``auto`` takes the first that fits: no preset, then the presets from the fastest on; the last one if none fits, for which the error
    message then suggests changes. ``estimate`` returns the GB that a configuration needs; ``total_gb`` is what the machine has.
    """
    if is_settled(config):
        return config
    if config.training.memory != "auto":
        return with_preset(config, config.training.memory, group)
    plain = _as_it_is(config)
    for candidate in (plain, *(with_preset(config, size, group) for size in SIZES)):
        if estimate(candidate) <= total_gb:
            return candidate
    return candidate


def _as_it_is(config: RunConfig) -> RunConfig:
    return parse(config.model_dump(mode="json"))
