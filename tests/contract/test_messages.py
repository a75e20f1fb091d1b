"""What messages name is there: settings in the configuration and on their node, and nothing is named in plain text instead."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from trainer.cli import build_parser
from trainer.config import run_config
from trainer.config.prepare_settings import PrepareSettings
from trainer.config.setting import settings_of

ROOT = Path(__file__).resolve().parents[2]
COMMAND_LINE = {"commands", "cli.py", "entry.py", "overrides.py"}  # what these print is read on the command line only
RUN_KEYS, DATASET_KEYS = set(run_config.keys()), set(settings_of(PrepareSettings))
COMMANDS = build_parser()._subparsers._group_actions[0].choices.values()  # type: ignore[union-attr]
OPTIONS = {option for command in COMMANDS for option in command._option_string_actions if option.startswith("--")}
PARTS = ("Message", "Setting", "DatasetSetting", "ExportOption", "File", "join_messages")
NAMES = [*(key for key in RUN_KEYS | DATASET_KEYS if "." in key), *OPTIONS]
RAW_NAME = re.compile(r"(?<![\w./`-])(?:" + "|".join(map(re.escape, NAMES)) + r")(?![\w-])|python -m trainer|\bdocs/\w+\.md")


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of each sentence in a module that is no docstring: a string constant with a space in it."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value and id(node) not in docstrings:
            yield node.lineno, node.value


def modules() -> Iterator[tuple[Path, ast.AST]]:
    for folder in ("trainer", "nodes"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            if not COMMAND_LINE & set(file.relative_to(ROOT / folder).parts):
                yield file.relative_to(ROOT), ast.parse(file.read_text(encoding="utf-8"))


def named(kind: str) -> list[tuple[str, str]]:
    """Place and name of each ``kind("name", …)`` in the code."""
    return [
        (f"{file}:{node.lineno}", str(node.args[0].value))
        for file, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == kind
        if node.args and isinstance(node.args[0], ast.Constant)
    ]


def test_no_message_names_a_setting_or_a_command_in_plain_text() -> None:
    words_of_the_command_line = ROOT / "trainer" / "core" / "messages.py"
    raw = [
        f"{file}:{line}: {text}"
        for file, tree in modules()
        if ROOT / file != words_of_the_command_line
        for line, text in texts(tree)
        if RAW_NAME.search(text)
    ]
    assert not raw, "\n".join(raw)


def test_messages_are_not_put_into_f_strings_which_lose_their_parts() -> None:
    flattened = [
        f"{file}:{node.lineno}"
        for file, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.FormattedValue)
        if (isinstance(node.value, ast.Attribute) and node.value.attr in ("message", "hint"))
        or (isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name) and node.value.func.id in PARTS)
    ]
    assert not flattened


def test_settings_named_in_messages_exist() -> None:
    places = named("Setting")
    assert len(places) > 20
    assert not [place for place in places if place[1] not in RUN_KEYS]
    assert not [place for place in named("DatasetSetting") if place[1] not in DATASET_KEYS]


def test_export_options_named_in_messages_exist() -> None:
    places = named("ExportOption")
    assert places
    for _, name in places:
        build_parser().parse_args(["export", "a", "b", f"--{name}", "kohya" if name == "format" else "fp16" if name == "dtype" else "4"])


def test_export_options_named_in_messages_are_inputs_of_the_node(description: dict[str, Any]) -> None:
    inputs = description["nodes"]["AnimeLoRA_ExportLora"]["input"]
    assert {name for _, name in named("ExportOption")} <= {*inputs["required"], *inputs.get("optional", {})}


def test_settings_on_a_node_are_named_by_their_widget(helper: Callable[[str], ModuleType]) -> None:
    wording, training_widgets = helper("wording"), helper("widgets.training_widgets")
    for place, key in named("Setting"):
        words = wording.on_canvas(wording.Message(wording.Setting(key)))
        assert ("→" in words) == (key not in training_widgets.NOT_ON_A_NODE), f"{place}: {words}"


@pytest.mark.parametrize(
    "text", ["Set training.memory.", "Use python -m trainer info.", "or --rank N", "see docs/training.md", "in clean.leave_out"]
)
def test_a_name_in_plain_text_is_recognised(text: str) -> None:
    assert RAW_NAME.search(text)
