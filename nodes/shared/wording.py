"""The trainer's words as the canvas says them: settings by their node and widget, and no command line."""

from __future__ import annotations

import re

from .places import BY_NODE

TITLES = {
    "TrainLora": "Train LoRA",
    "TrainOptions": "Train Options",
    "NetworkOptions": "Network Options",
    "LearningOptions": "Learning Options",
    "MachineOptions": "Machine Options",
    "MonitorOptions": "Monitor Options",
}
_WIDGETS = {
    key: f"{TITLES[node]} → {widget}"
    for node, table in BY_NODE.items()
    for widget, key in table.items()
    if "." in key  # "preset" is a word of the language, too
}
# settings of datasets that reports name
_WIDGETS |= {
    "captions.remove": "Dataset Options → remove_tags",
    "captions.replace": "Dataset Options → replace_tags",
    "captions.separator": "Dataset Options → tag_separator",
    "training.wildcards": "Dataset Options → wildcards",
}
# Not inside a path or another word. What follows a dot is a part of the setting (network.block_ranks.mid_block), but not the end of a file.
_KEY = re.compile(r"(?<![\w./\\-])(" + "|".join(map(re.escape, _WIDGETS)) + r')(?![\w/\\-]|\.safetensors)(?: = "([^"\n]*)")?')
_COMMANDS = (
    (
        re.compile(r"Every (?:key|setting) is described in docs/\w+\.md(?: and in `python -m trainer [^`]*`)?\."),
        "The help page of each node describes its settings.",
    ),
    (re.compile(r"python -m trainer export\b"), "Export LoRA"),
    (re.compile(r"--(dtype|format|rank)\b"), r"\1"),  # widgets of Export LoRA
    (re.compile(r"Use `info` on the file for all details\."), "Choose another file, or make it again."),
    (re.compile(r"Its metadata may help: --metadata [^\n]*"), "Choose a file that says for which model it was made."),
    (re.compile(r"(?:, or| or|:) python -m trainer .*?(?=\.(?:\s|$)|$)", re.MULTILINE), ""),
)


def on_the_canvas(text: str) -> str:
    """``text`` with ``training.memory = "auto"`` as ``Machine Options → memory = auto``. What is on no node keeps its name."""
    for pattern, instead in _COMMANDS:
        text = pattern.sub(instead, text)
    return _KEY.sub(lambda found: _WIDGETS[found[1]] + ("" if found[2] is None else f" = {found[2]}"), text)
