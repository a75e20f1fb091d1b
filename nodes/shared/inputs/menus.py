"""Check the values that an API client sends before a node runs.

ComfyUI 0.3.64 accepts any value for a menu. Later versions refuse unknown ones. None checks texts.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ....trainer.core.errors import UserError
from ..failures import canvas_errors
from ..text_inputs import require_valid_unicode


def with_menus_checked(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """``node`` with an ``execute`` that refuses values missing from its menus and texts with invalid Unicode."""
    original = node.execute.__func__
    if hasattr(original, "__wrapped__"):
        return node

    @functools.wraps(original)
    def execute(cls: Any, *arguments: Any, **values: Any) -> io.NodeOutput:
        with canvas_errors():
            require_valid_unicode(values)
            require_listed(cls.define_schema().inputs, values)
        return original(cls, *arguments, **values)

    node.execute = classmethod(execute)
    return node


def require_listed(inputs: list[io.Input], values: Mapping[str, Any]) -> None:
    """Raise UserError for the first of ``values`` that is missing from its menu."""
    for each in inputs:
        value = values.get(each.id)
        if not isinstance(each, io.Combo.Input) or each.id not in values or (value is None and each.optional):
            continue
        if not any(value == entry and type(value) is type(entry) for entry in each.options):
            raise UserError(
                f"{str(value)[:200]!r} is not in the menu of {each.id}.",
                "Choose one of its entries. Refresh the page if the entry is new.",
                kind="input",
            )
