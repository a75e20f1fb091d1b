"""The settings of a run as values of widgets, so that they can be put into Train LoRA and its options nodes again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ....trainer.config.run_config import RunConfig
from ....trainer.config.setting import settings_of
from ..widgets.training_widgets import NODES, NOT_ON_A_NODE, TRAIN_LORA_WIDGETS
from ..widgets.widget import Widget

_MACHINE = ("output.runs", "output.publish")  # places, which every server chooses itself
_SOCKET = "dataset."  # what the dataset socket brings


@dataclass(frozen=True)
class NotSet:
    """A setting that no widget can show: ``reason`` is ``missing`` (a file that is in no menu), ``value`` (beyond the widget's limits) or
    ``no widget``. ``node`` and ``widget`` are ids, empty without a widget."""

    key: str
    value: str
    reason: str
    node: str = ""
    widget: str = ""


@dataclass
class WidgetValues:
    """``values`` has all values by node id and widget; ``needed`` the nodes other than Train LoRA that show a value that is no default."""

    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    needed: list[str] = field(default_factory=list)
    not_set: list[NotSet] = field(default_factory=list)


def widget_values(config: RunConfig, menus: Mapping[str, Callable[[str], str | None]]) -> WidgetValues:
    """The values of all widgets for ``config``. ``menus``: by key of a setting that is a path, its menu entry; None if it has none."""
    settings, found = settings_of(RunConfig), WidgetValues()
    for node in NODES:
        table = found.values.setdefault(node.id, {})
        for widget in node.widgets:
            setting, value = node.setting(widget), _value(config, widget.key)
            shown = _entry(menus[widget.key], widget, str(value)) if widget.key in menus else widget.shown(setting, value)
            if shown is None or (widget.key not in menus and not widget.takes(setting, shown)):
                text, reason = (_file_name(value), "missing") if shown is None else (_text(value), "value")
                found.not_set.append(NotSet(widget.key, text, reason, node.id, widget.name))
                continue
            table[widget.name] = shown
            if node is not TRAIN_LORA_WIDGETS and value != setting.default and node.id not in found.needed:
                found.needed.append(node.id)
    for key in NOT_ON_A_NODE:
        value = _value(config, key)
        if not key.startswith(_SOCKET) and key not in _MACHINE and value != settings[key].default:
            found.not_set.append(NotSet(key, _text(value), "no widget"))
    return found


def _value(config: RunConfig, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def _entry(menu: Callable[[str], str | None], widget: Widget, path: str) -> str | None:
    """The entry of a menu for ``path``; its default stands for no path."""
    return menu(path) if path else widget.default


def _file_name(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2]


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {each}" for key, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
