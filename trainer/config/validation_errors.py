"""Pydantic's validation errors as messages that name settings and suggest the nearest valid key."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from ..core.messages import Message, Setting, join_messages

_MAX_VALUE = 80  # characters of a value in a message


def describe_problems(error: ValidationError, setting: type[Setting], keys: Sequence[str]) -> Message:
    """A line for each problem in ``error``. ``setting`` is the class of the settings, ``keys`` are all valid ones."""
    return join_messages("\n", (Message("  ", _describe(problem, setting, keys)) for problem in error.errors(include_url=False)))


def _describe(problem: Any, setting: type[Setting], keys: Sequence[str]) -> Message:
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        in_another_section = [each for each in keys if each.rpartition(".")[2] == str(problem["loc"][-1])]
        similar = in_another_section or difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
        suggestion = Message("; did you mean ", setting(similar[0]), "?") if similar else ""
        return Message(f"{key}: unknown setting", suggestion)
    where = Message(setting(key), ": ") if key and any(f"{key}.".startswith(f"{each}.") for each in keys) else f"{key}: " if key else ""
    if problem["type"] == "missing":
        return Message(where, "missing")
    value = problem.get("input")
    got = "" if isinstance(value, dict) else f" (got {repr(value)[:_MAX_VALUE]})"
    return Message(where, _text(problem), got)


def _text(problem: Any) -> str:
    """What a validator of ours raised, which may be a Message; else pydantic's text."""
    raised = problem.get("ctx", {}).get("error")
    if isinstance(raised, ValueError) and raised.args:
        return raised.args[0] if isinstance(raised.args[0], str) else str(raised)
    return str(problem["msg"])
