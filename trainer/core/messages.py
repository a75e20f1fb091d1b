"""Messages for users, whose mentions of settings, files and actions each face words in its own way.

A message that names none of these is a plain string. One that does is a ``Message``:

    raise UserError("fp16 training needs a GPU.", Message("Set ", Setting("training.precision"), " to auto, bf16 or fp32."))

It is a string in the words of the command line and the log, and keeps its parts, so that the canvas can write ``Train LoRA → precision``
where the command line writes ``training.precision``. Combine messages with ``Message(...)`` or ``join_messages``: f-strings lose parts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

Value: TypeAlias = "str | int | float | bool"


@dataclass(frozen=True)
class Setting:
    """A key of the run configuration, such as ``training.memory``, with the value that it should have if the message suggests one."""

    key: str
    value: Value | None = None

    def __str__(self) -> str:
        return self.key if self.value is None else f"{self.key} = {json.dumps(self.value)}"  # as in TOML


@dataclass(frozen=True)
class DatasetSetting(Setting):
    """A key of the settings of a dataset, such as ``captions.remove``."""


@dataclass(frozen=True)
class ExportOption:
    """An option of the export of LoRA files, such as ``rank``, with the value that it should have if the message suggests one."""

    name: str
    value: Value | None = None

    def __str__(self) -> str:
        return f"--{self.name}" if self.value is None else f"--{self.name} {self.value}"


@dataclass(frozen=True)
class File:
    """The file or folder that a message is about."""

    path: str

    def __str__(self) -> str:
        return self.path


class Action(Enum):
    """What a user can do next, in words that follow "use", "with", "see" or "to". The values are those of the command line."""

    PREPARE_DATASET = "`python -m trainer prepare FOLDER --out DIR --trigger WORD`"
    EXPORT_LORA = "`python -m trainer export LORA OUT`"
    MERGE_LORA = "`python -m trainer export LORA OUT --into-checkpoint CHECKPOINT`"
    INSPECT_LORA = "`python -m trainer info LORA`"
    STATE_MODEL = "--metadata ss_base_model_version=sd_v1 (or sdxl_base_v1-0)"
    LEAVE_OUT_IMAGE = "delete it from the source, or name it in clean.leave_out"
    READ_ABOUT_SETTINGS = "docs/training.md and `python -m trainer train --help`"
    READ_ABOUT_DATASET_SETTINGS = "docs/datasets.md"

    def __str__(self) -> str:
        return self.value


Part: TypeAlias = "Setting | DatasetSetting | ExportOption | File | Action"
_SETTINGS: dict[str, type[Setting] | type[ExportOption]] = {  # by their kind in JSON
    "setting": Setting,
    "dataset_setting": DatasetSetting,
    "export_option": ExportOption,
}


class Message(str):
    """Text in the words of the command line that keeps the settings, files and actions it names in ``parts``."""

    parts: tuple[str | Part, ...]

    def __new__(cls, *parts: str | Part) -> Message:
        flat: list[str | Part] = []
        for part in parts:
            flat += part.parts if isinstance(part, Message) else [part]
        message = super().__new__(cls, "".join(map(str, flat)))
        message.parts = tuple(flat)
        return message

    def __reduce__(self) -> tuple[type[Message], tuple[str | Part, ...]]:  # copies and pickles keep the parts
        return type(self), self.parts

    @property
    def mentions(self) -> tuple[Part, ...]:
        """The settings, files and actions that the message names, in their order."""
        return tuple(part for part in self.parts if not isinstance(part, str))

    def worded(self, word: Callable[[Part], str]) -> str:
        """The message with ``word`` of each setting, file and action that it names."""
        return "".join(part if isinstance(part, str) else word(part) for part in self.parts)

    def to_json(self) -> list[Any]:
        """The parts as JSON data: strings, and for each mention an object with its kind, such as ``{"setting": "training.memory"}``."""
        return [part if isinstance(part, str) else _mention_to_json(part) for part in self.parts]


def join_messages(separator: str, messages: Iterable[str | Part]) -> Message:
    """``str.join`` that keeps the parts."""
    parts: list[str | Part] = []
    for message in messages:
        parts += [separator, message] if parts else [message]
    return Message(*parts)


def mentions(text: str) -> tuple[Part, ...]:
    """The settings, files and actions that ``text`` names, if it is a Message; none in a plain string."""
    return text.mentions if isinstance(text, Message) else ()


def from_json(data: object) -> Message:
    """The message that ``to_json`` gave. Raises ValueError for anything else."""
    if not isinstance(data, list):
        raise ValueError("not a list of parts")
    return Message(*(part if isinstance(part, str) else _mention_from_json(part) for part in data))


def _mention_to_json(part: Part) -> dict[str, Value]:
    if isinstance(part, Action):
        return {"action": part.name.lower()}
    if isinstance(part, File):
        return {"file": part.path}
    kind = next(kind for kind, cls in _SETTINGS.items() if cls is type(part))
    name = part.name if isinstance(part, ExportOption) else part.key
    return {kind: name} if part.value is None else {kind: name, "value": part.value}


def _mention_from_json(data: object) -> Part:
    if not isinstance(data, dict) or not data:
        raise ValueError("not a part of a message")
    (kind, name), *rest = data.items()
    values = [value for key, value in rest if key == "value" and isinstance(value, (str, int, float, bool))]
    if not isinstance(name, str) or len(rest) != len(values):
        raise ValueError("not a part of a message")
    if kind == "action":
        try:
            return Action[name.upper()]
        except KeyError:
            raise ValueError("not an action") from None
    if kind == "file" and not values:
        return File(name)
    if kind not in _SETTINGS:
        raise ValueError("not a part of a message")
    return _SETTINGS[kind](name, *values)
