"""A widget that sets one setting, described in one line. Everything else about it comes from the setting's own field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from ....trainer.config.setting import SettingField, settings_of

PREFIX = "AnimeLoRA_"  # of every node id of the pack
Kind = Literal["BOOLEAN", "INT", "FLOAT", "COMBO", "STRING"]


@dataclass(frozen=True)
class Widget:
    """A widget called ``name`` for the setting ``key``. What is left out is as in the setting: type, limits, default, menu, tooltip.

    A ``default`` that differs from the setting's needs a reason, ``because``. A widget that is not ``required`` may be missing in graphs
    made by programs and in old workflows; the setting then keeps its own default.
    """

    name: str
    key: str
    note: str = ""  # added to the tooltip: what is special about the widget's values
    default: Any = None
    because: str = ""
    min: float | None = None  # narrower than the setting's, or where the setting has no limit or excludes it
    max: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()  # fewer than the setting's, or in another order
    read: Callable[[str, str], Any] | None = None  # makes the setting's value out of the widget's text and name
    multiline: bool = False
    advanced: bool = False
    required: bool = False
    rolls: bool = True  # whether ComfyUI may offer to change a seed after each run

    def kind(self, setting: SettingField) -> Kind:
        """The type of ComfyUI's that fits the setting's."""
        if setting.type is bool:
            return "BOOLEAN"
        if setting.type in (int, float):
            return "INT" if setting.type is int else "FLOAT"
        return "COMBO" if setting.choices else "STRING"

    def arguments(self, setting: SettingField) -> dict[str, Any]:
        """What ComfyUI's input type is created with, except for menus that depend on the machine."""
        kind = self.kind(setting)
        result: dict[str, Any] = {"tooltip": f"{setting.description} {self.note}".strip(), "optional": not self.required}
        default = _on_the_canvas(setting) if self.default is None else self.default
        if default is not None:
            result["default"] = default
        if kind in ("INT", "FLOAT"):
            result |= self._numbers(setting)
        if kind == "FLOAT":
            result["round"] = False  # the browser would round what is typed to multiples of the step
        if kind == "COMBO":
            result["options"] = list(self.choices or setting.choices)
        if self.multiline:
            result["multiline"] = True
        if not self.rolls:
            result["control_after_generate"] = False
        return result

    def _numbers(self, setting: SettingField) -> dict[str, float]:
        """Lowest and highest value, and the step between values."""
        few = setting.choices if setting.type is int else ()  # 75, 150, 225
        lowest = min(few) if few else 0 if zero_is_auto(setting) else setting.least
        limits = {
            "min": lowest if self.min is None else self.min,
            "max": (max(few) if few else setting.most) if self.max is None else self.max,
            "step": (few[1] - few[0] if few else setting.multiple_of) if self.step is None else self.step,
        }
        return {name: setting.type(value) for name, value in limits.items() if value is not None}

    def value(self, setting: SettingField, shown: Any) -> Any:
        """The setting's value for what the widget shows."""
        if self.read is not None:
            return self.read(shown, self.name)
        return "auto" if zero_is_auto(setting) and shown == 0 else shown

    def shown(self, setting: SettingField, value: Any) -> Any:
        """What the widget shows for the setting's value: the inverse of ``value``."""
        if isinstance(value, Mapping):
            return "\n".join(f"{name} = {number:.6f}".rstrip("0").rstrip(".") for name, number in value.items())
        if isinstance(value, (list, tuple)):
            return "\n".join(value)
        return 0 if zero_is_auto(setting) and value == "auto" else value

    def takes(self, setting: SettingField, shown: Any) -> bool:
        """Whether ``shown`` is within the widget's limits or in its menu."""
        arguments = self.arguments(setting)
        if "options" in arguments:
            return shown in arguments["options"]
        return bool(arguments.get("min", shown) <= shown <= arguments.get("max", shown))


def zero_is_auto(setting: SettingField) -> bool:
    """Whether a setting is a number or "auto": its widget, which can hold numbers only, shows auto as 0."""
    return setting.type in (int, float) and "auto" in setting.choices


def _on_the_canvas(setting: SettingField) -> Any:
    """The setting's default in the type of its widget; None for a required setting."""
    if setting.type in (tuple, dict):  # edited as text
        return "" if not setting.default else None
    return 0.0 if setting.default == "auto" and zero_is_auto(setting) else setting.default


@dataclass(frozen=True)
class NodeWidgets:
    """All inputs of a node in their order, which saved workflows rely on. A plain name is an input that the node describes itself."""

    node: str
    title: str
    model: type[BaseModel]  # holds the settings
    inputs: tuple[Widget | str, ...]

    @property
    def id(self) -> str:
        """The node's id in workflows."""
        return PREFIX + self.node

    @property
    def widgets(self) -> tuple[Widget, ...]:
        """The inputs that set a setting."""
        return tuple(row for row in self.inputs if isinstance(row, Widget))

    def setting(self, widget: Widget) -> SettingField:
        """The setting that ``widget`` sets."""
        return settings_of(self.model)[widget.key]

    def settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Nested settings from the ``values`` of widgets; one that is missing sets nothing."""
        result: dict[str, Any] = {}
        for widget in self.widgets:
            if widget.name in values:
                section, _, name = widget.key.rpartition(".")
                table = result.setdefault(section, {}) if section else result
                table[name] = widget.value(self.setting(widget), values[widget.name])
        return result


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings of ``below`` with those of ``above`` replacing them, key by key."""
    result = dict(below)
    for name, value in above.items():
        own = result.get(name)
        result[name] = {**own, **value} if isinstance(own, Mapping) and isinstance(value, Mapping) else value
    return result
