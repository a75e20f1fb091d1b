"""Messages of the trainer in the words of the canvas: settings by node and widget, actions by node instead of command."""

from __future__ import annotations

from ...trainer.core.messages import Action, DatasetSetting, ExportOption, File, Message, Part, Setting
from .input_names import readable
from .widgets.dataset_widgets import DATASET_TITLE_AND_WIDGET
from .widgets.training_widgets import TITLE_AND_WIDGET

WIDGETS = {key: f"{title} → {readable(widget)}" for key, (title, widget) in TITLE_AND_WIDGET.items()} | {
    "preset": "Train LoRA → preset",
}
DATASET_WIDGETS = {key: f"{title} → {readable(widget)}" for key, (title, widget) in DATASET_TITLE_AND_WIDGET.items()} | {
    "shape": "Dataset Prep → crop mode",
    "crop": "Dataset Prep → crop mode",
    "upscaler": "Dataset Prep → upscale model",
}
ACTIONS = {
    Action.PREPARE_DATASET: "Dataset Prep",
    Action.EXPORT_LORA: "Export LoRA",
    Action.MERGE_LORA: "Load LoRA and ComfyUI's Save Checkpoint",
    Action.INSPECT_LORA: "the card of the LoRA in Load LoRA",
    Action.STATE_MODEL: "a file that states for which model it was made",
    Action.LEAVE_OUT_IMAGE: "delete it from the source",
    Action.READ_ABOUT_SETTINGS: "the help page of each node",
    Action.READ_ABOUT_DATASET_SETTINGS: "the help pages of Dataset Prep and Dataset Options",
}


def on_canvas(text: str) -> str:
    """``text`` as an artist reads it: ``Machine Options → memory = auto`` for the setting ``training.memory = "auto"``."""
    return text.worded(_word) if isinstance(text, Message) else text


def _word(part: Part) -> str:
    if isinstance(part, Action):
        return ACTIONS[part]
    if isinstance(part, File):
        return part.path
    if isinstance(part, ExportOption):
        return _with_value(f"Export LoRA → {readable(part.name)}", part)
    return _with_value(_place(part.key, DATASET_WIDGETS if isinstance(part, DatasetSetting) else WIDGETS), part)


def _place(key: str, widgets: dict[str, str]) -> str:
    """The widget for ``key``, or for the setting that it is a part of (``network.block_ranks.mid_block``)."""
    setting, inside = key, ""
    while setting:
        if setting in widgets:
            return widgets[setting] + inside
        setting, dot, last = setting.rpartition(".")
        inside = f"{dot}{last}{inside}"
    return f"{key} (command line only)"


def _with_value(place: str, part: Setting | ExportOption) -> str:
    if part.value is None:
        return place
    return f"{place} = {str(part.value).lower() if isinstance(part.value, bool) else part.value}"
