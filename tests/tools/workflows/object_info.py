"""What a server says of its nodes (``/object_info``), as the frontend reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

ObjectInfo = Mapping[str, Any]

_WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def inputs_of(info: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs by name in the order in which the frontend creates widgets."""
    sections = info["input"]
    return {name: sections[section][name] for section in ("required", "optional") for name in sections.get(section, {})}


def outputs_of(info: Mapping[str, Any]) -> list[dict[str, str]]:
    """Outputs as the frontend stores them, without links."""
    return [{"name": name, "type": kind} for name, kind in zip(info["output_name"], info["output"], strict=True)]


def is_folded(spec: Any) -> bool:
    """Whether a widget is folded away in a new node."""
    return bool(options(spec).get("advanced"))


def options(spec: Any) -> dict[str, Any]:
    """The second part of an input's description."""
    return dict(spec[1]) if len(spec) > 1 else {}


def is_widget(spec: Any) -> bool:
    """Whether the frontend shows an input as a widget rather than a socket."""
    return (isinstance(spec[0], list) or spec[0] in _WIDGET_TYPES) and not options(spec).get("forceInput")


def socket_type(spec: Any) -> str:
    """The type of an input's socket."""
    return "COMBO" if isinstance(spec[0], list) else str(spec[0])


def choices(spec: Any) -> list[Any] | None:
    """The entries of a menu; None for other widgets."""
    if isinstance(spec[0], list):
        return list(spec[0])
    return list(options(spec).get("options", [])) if spec[0] == "COMBO" else None


def has_control(name: str, spec: Any) -> bool:
    """Whether the frontend adds a "control after generate" widget below a number."""
    asked = options(spec).get("control_after_generate")
    return bool(asked) if asked is not None else spec[0] == "INT" and name in ("seed", "noise_seed")


def default_of(spec: Any) -> Any:
    """The value that the frontend gives a new widget."""
    found = options(spec).get("default")
    if found is not None:
        return found
    menu = choices(spec)
    if menu is not None:
        return menu[0] if menu else None
    return {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}[spec[0]]


def widget_values(info: Mapping[str, Any], given: Mapping[str, Any]) -> list[Any]:
    """Values of all widgets in the frontend's order, the added ones (control after generate, upload button) included."""
    values: list[Any] = []
    for name, spec in inputs_of(info).items():
        if not is_widget(spec):
            continue
        values.append(given.get(name, default_of(spec)))
        if has_control(name, spec):
            values.append("fixed")
        if options(spec).get("image_upload"):
            values.append("image")
    return values


def widget_names(info: Mapping[str, Any]) -> Iterable[str | None]:
    """Names of all widgets in the frontend's order; None for an added one."""
    for name, spec in inputs_of(info).items():
        if is_widget(spec):
            yield name
            if has_control(name, spec):
                yield None
            if options(spec).get("image_upload"):
                yield None
