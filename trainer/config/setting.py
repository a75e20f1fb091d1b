"""A setting is written down once, as a field of a pydantic model: type, limits, default, description, and why this default.

Node inputs and their tooltips, the tables in docs/, the help pages and the command line's help are all made from these fields.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

_LIMITS = {"ge": "least", "gt": "above", "le": "most", "lt": "below", "multiple_of": "multiple_of"}


def setting(default: Any, description: str, *, why: str, details: str = "", **limits: Any) -> Any:
    """A field with a default.

    ``description`` is the tooltip: a sentence or two that an artist understands at the first reading. ``why`` gives the reason or the
    source of the default. ``details`` (Markdown) are for readers of the documentation. ``limits`` are pydantic's: ge, gt, le, lt, …
    """
    return Field(default, description=description, json_schema_extra={"why": why, "details": details}, **limits)


def required(description: str, *, details: str = "", **limits: Any) -> Any:
    """A field without a default; the texts are as in ``setting``."""
    return Field(description=description, json_schema_extra={"why": "", "details": details}, **limits)


@dataclass(frozen=True)
class SettingField:
    """What a field says about itself. A limit that is None does not exist; ``least`` and ``most`` are allowed values themselves."""

    key: str  # with its section: network.rank
    type: type  # bool, int, float, str, tuple or dict
    default: Any  # None where the setting is required
    required: bool
    description: str
    details: str
    why: str
    choices: tuple[Any, ...] = ()  # all allowed values; of a number, the words that are allowed in its place
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    multiple_of: float | None = None


@functools.cache
def settings_of(model: type[BaseModel]) -> Mapping[str, SettingField]:
    """Every setting of ``model`` by its key; a field that is a model itself is a section."""
    return {item.key: item for item in _settings(model, "")}


def _settings(model: type[BaseModel], prefix: str) -> Iterator[SettingField]:
    for name, info in model.model_fields.items():
        section = next((part for part in _alternatives(info.annotation) if isinstance(part, type) and issubclass(part, BaseModel)), None)
        if section is not None:
            yield from _settings(section, f"{prefix}{name}.")
        else:
            yield _setting(f"{prefix}{name}", info)


def _setting(key: str, info: FieldInfo) -> SettingField:
    texts: Mapping[str, Any] = info.json_schema_extra if isinstance(info.json_schema_extra, Mapping) else {}
    kind, choices, limits = _kind(info)
    return SettingField(
        key,
        kind,
        None if info.is_required() else info.get_default(call_default_factory=True),
        info.is_required(),
        info.description or "",
        str(texts.get("details", "")),
        str(texts.get("why", "")),
        choices,
        **limits,
    )


def _kind(info: FieldInfo) -> tuple[type, tuple[Any, ...], dict[str, float]]:
    kind: type = NoneType
    choices: list[Any] = []
    limits = _limits(info.metadata)
    for part in _alternatives(info.annotation):
        if get_origin(part) is Annotated:
            part, *metadata = get_args(part)
            limits |= _limits(metadata)
        if get_origin(part) is Literal:
            choices += get_args(part)
        else:
            kind = get_origin(part) or part
    return (type(choices[0]) if kind is NoneType else kind), tuple(choices), limits


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """``int | None`` as its two types; any other annotation as itself."""
    is_union = get_origin(annotation) not in (None, Annotated, Literal, tuple, dict)
    return get_args(annotation) if is_union else (annotation,)


def _limits(metadata: list[Any]) -> dict[str, float]:
    rules = [rule for item in metadata for rule in (item.metadata if isinstance(item, FieldInfo) else [item])]
    return {ours: value for rule in rules for theirs, ours in _LIMITS.items() if (value := getattr(rule, theirs, None)) is not None}
