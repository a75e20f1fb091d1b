"""Problems as the panel shows them: sentence, what to do, and the widgets that would do it with one click."""

from __future__ import annotations

from typing import Any

from ....trainer.config.run_config import RunConfig
from ....trainer.config.setting import settings_of
from ....trainer.core.errors import UserError
from ....trainer.core.messages import DatasetSetting, Message, Setting, mentions
from ....trainer.dataset.reading.surrogates import replace_surrogates
from ..files.base_models import default_base_model
from ..widgets.training_widgets import NODES, TRAIN_LORA_WIDGETS
from ..widgets.widget import zero_is_auto
from ..wording import on_canvas

_WIDGETS = {widget.key: (node.id, widget.name) for node in NODES for widget in node.widgets} | {
    "preset": (TRAIN_LORA_WIDGETS.id, "preset"),
}


def problem(message: str, hint: str = "", *, refused: bool, more: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """JSON for the panel. ``refused``: the run would not start. ``more``: buttons beside those of the settings that the texts suggest."""
    return {
        "refused": refused,
        "message": replace_surrogates(on_canvas(message)),  # file names may be invalid Unicode
        "hint": replace_surrogates(on_canvas(hint)),
        "fixes": [*widget_values(message, hint), *(more or [])],
    }


def error_problem(error: UserError) -> dict[str, Any]:
    """The problem of an error that the user can correct. A checkpoint that cannot be used comes with another one to choose."""
    other = default_base_model() if error.kind == "checkpoint" else ""
    more = [_button(TRAIN_LORA_WIDGETS.id, "checkpoint", other, f"Train LoRA → checkpoint = {other}")] if other else []
    return problem(error.message, error.hint, refused=True, more=more)


def widget_values(*messages: str) -> list[dict[str, Any]]:
    """The values of settings that messages suggest, by the widget that sets them, each once."""
    suggested = [part for text in messages for part in mentions(text) if isinstance(part, Setting) and not isinstance(part, DatasetSetting)]
    return [
        _button(*_WIDGETS[part.key], _shown(part), on_canvas(Message(part)))
        for part in dict.fromkeys(suggested)
        if part.value is not None and part.key in _WIDGETS
    ]


def _button(node: str, widget: str, value: Any, text: str) -> dict[str, Any]:
    return {"node": node, "widget": widget, "value": value, "text": text}


def _shown(part: Setting) -> Any:
    """The value that the widget shows for a setting's value: a number whose setting is "auto" is 0."""
    setting = settings_of(RunConfig).get(part.key)
    return 0 if setting is not None and part.value == "auto" and zero_is_auto(setting) else part.value
