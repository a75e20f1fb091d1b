"""What a program sends to a node, looked at before the node is called.

ComfyUI 0.3.64 takes whatever value for a menu, later versions refuse it themselves; none looks at what a text holds.
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
    """``node``, whose call refuses a value that is not in its menu, and a text that no file can hold."""
    honest = node.execute.__func__
    if hasattr(honest, "__wrapped__"):
        return node

    @functools.wraps(honest)
    def execute(cls: Any, *arguments: Any, **values: Any) -> io.NodeOutput:
        with canvas_errors():
            require_valid_unicode(values)
            require_listed(cls.define_schema().inputs, values)
        return honest(cls, *arguments, **values)

    node.execute = classmethod(execute)
    return node


def require_listed(inputs: list[io.Input], values: Mapping[str, Any]) -> None:
    """Raise UserError for the first of ``values`` that is not in the menu of its input."""
    for each in inputs:
        value = values.get(each.id)
        if not isinstance(each, io.Combo.Input) or each.id not in values or (value is None and each.optional):
            continue
        if not any(value == entry and type(value) is type(entry) for entry in each.options):
            raise UserError(
                f"{str(value)[:200]!r} is not in the menu of {each.id}.", "Choose an entry; refresh the page if it is new.", kind="input"
            )
