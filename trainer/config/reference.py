"""Settings described for readers: the tables of docs/ and the list of ``train --keys``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from .setting import SettingField, settings_of

_UNLIMITED = {bool: "`true`, `false`", str: "text", tuple: "a list", dict: "a table"}


def settings_table(model: type[BaseModel]) -> str:
    """A Markdown table of every setting of ``model``."""
    rows = ["| Key | Default | Values | What it does | Why this default |", "| --- | --- | --- | --- | --- |"]
    for item in settings_of(model).values():
        default = "required" if item.required else f"`{as_toml(item.default)}`"
        cells = (f"`{item.key}`", default, allowed_values(item), f"{item.description} {item.details}".strip(), item.why)
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows)


def settings_list(model: type[BaseModel]) -> Iterator[str]:
    """Every setting of ``model`` with its default and description, one a line."""
    for item in settings_of(model).values():
        default = "(required)" if item.required else f"= {as_toml(item.default)}"
        yield f"{item.key} {default}  {item.description}"


def as_toml(value: Any) -> str:
    """A default as a TOML file would set it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {as_toml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


def allowed_values(item: SettingField) -> str:
    """What may be set, in Markdown: a list of words, or a range."""
    words = ", ".join(f"`{as_toml(choice)}`" for choice in item.choices)
    if item.type not in (int, float) or (item.type is int and words):
        return words or _UNLIMITED[item.type]
    low = f"{item.least:g}" if item.above is None else f"above {item.above:g}"
    if item.below is not None:
        span = f"{low} to less than {item.below:g}"
    elif item.most is None:
        span = f"{low} or more"
    else:
        span = f"{low}{' to' if item.above is None else ', up to'} {_number(item.most)}"
    multiples = "" if item.multiple_of is None else f", multiples of {item.multiple_of:g}"
    return f"{span}{multiples}, {words}" if words else f"{span}{multiples}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"
