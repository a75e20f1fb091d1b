"""Parts of the model in settings, ``network.block_ranks`` and ``network.block_alphas``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ..config.sections.network import NetworkSection, covers
from ..core.errors import UserError
from ..core.messages import Message, Setting
from ..lorafile import settings_name
from . import adapter

if TYPE_CHECKING:
    from torch import nn

_NUMBERED = re.compile(r"([^.]+)\.(\d+)\.")


def require_blocks(network: NetworkSection, family: str, denoiser: nn.Module, text: Mapping[str, nn.Module]) -> None:
    """Raise UserError for a name in ``block_ranks`` or ``block_alphas`` that is no part of ``denoiser`` and of the text models ``text``
    (those that are trained, by component), which have no adapters yet."""
    names = [settings_name(family, name) for name in _with_weights(denoiser)]
    names += [adapter.standard_name(component, name) for component, model in text.items() for name in _with_weights(model)]
    for setting, blocks in (("block_ranks", network.block_ranks), ("block_alphas", network.block_alphas)):
        for block in blocks:
            if not any(covers(block, name) for name in names):
                what = Message(Setting(f"network.{setting}"), f" names {block}, which this model does not have.")
                raise UserError(what, f"Its parts: {', '.join(_parts(names))}.", kind="config")


def _with_weights(model: nn.Module) -> Iterable[str]:
    return (name for name, module in model.named_modules() if getattr(module, "weight", None) is not None)


def _parts(names: Iterable[str]) -> list[str]:
    """The outermost parts: ``down_blocks.0 to down_blocks.3``, ``mid_block``. Single layers are left out."""
    parts: dict[str, int | None] = {}
    for name in names:
        if match := _NUMBERED.match(name):
            parts[match[1]] = max(parts.get(match[1]) or 0, int(match[2]))
        elif "." in name:
            parts[name.partition(".")[0]] = None
    return [part if last is None else f"{part}.0 to {part}.{last}" for part, last in parts.items()]
