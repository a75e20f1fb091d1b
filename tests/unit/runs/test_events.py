"""The event stream: events survive encoding and decoding, and other lines are skipped."""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.core.messages import File, Message, Setting, mentions
from trainer.runs import events

_ANY_CHARACTER = st.characters(codec=None, exclude_categories=())  # surrogates, too: file names may have them
BY_TYPE: dict[str, st.SearchStrategy[Any]] = {
    "StrictInt": st.integers(),
    "Number": st.floats(),
    "StrictBool": st.booleans(),
    "StrictStr": st.text(_ANY_CHARACTER) | st.sampled_from(["nan", "inf", "-inf", "\n", "\r\n", "\x00", "\u2028", "{}", '"']),
    "list[StrictStr]": st.lists(st.text(_ANY_CHARACTER)),
    "Number | None": st.none() | st.floats(),
    "dict[str, Number]": st.dictionaries(st.text(), st.floats(allow_nan=False)),
    "dict[str, StrictInt]": st.dictionaries(st.text(), st.integers()),
}


def any_event(cls: type[events.Event]) -> st.SearchStrategy[events.Event]:
    """Events of one type with arbitrary values of the declared types."""
    return st.builds(cls, **{field.name: BY_TYPE[str(field.type)] for field in fields(cls)})


def same(first: Any, second: Any) -> bool:
    """Equality in which NaN equals NaN and an int is not a float."""
    if isinstance(first, float) and isinstance(second, float):
        return first == second or (math.isnan(first) and math.isnan(second))
    return type(first) is type(second) and bool(first == second)


@given(st.sampled_from(sorted(events.TYPES)).flatmap(lambda name: any_event(events.TYPES[name])))
def test_every_event_survives_encoding_and_decoding(event: events.Event) -> None:
    line = events.encode_event(event)
    assert "\n" not in line and "\r" not in line and line.isascii()
    back = events.decode_event(line)
    assert type(back) is type(event)
    for field in fields(event):
        assert same(getattr(back, field.name), getattr(event, field.name)), field.name


@given(any_event(events.Step))
def test_a_line_is_standard_json(event: events.Event) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    data = json.loads(events.encode_event(event), parse_constant=refuse)
    assert data["event"] == "step"


def test_nan_and_infinity_survive_the_stream() -> None:
    step = events.Step(1, 2, 1, math.nan, math.inf, 1e-4, -math.inf, 1.0, 0.0, 0.5)
    back = events.decode_event(events.encode_event(step))
    assert isinstance(back, events.Step)
    assert math.isnan(back.loss) and back.loss_average == math.inf and back.grad_norm == -math.inf


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Downloading: 100%",
        "{",
        "[]",
        "null",
        "3",
        '"event"',
        '{"event": 5}',
        '{"event": ["done"]}',
        '{"event": "unheard-of"}',
        '{"event": "done"}',
        '{"event": "step", "step": 1}',
        '{"loss": 0.5}',
        events.encode_event(events.Phase("training", 1, 2, time=0.0, clock=0.0))[:-5],
        "[" * 100_000,
        '{"event":' * 50_000,
        "9" * 10_000,
        "\ud800",
    ],
)
def test_decode_event_returns_none_for_other_lines(line: str) -> None:
    assert events.decode_event(line) is None


WRONG: dict[str, list[Any]] = {
    "StrictInt": ["1", 1.5, True, None, [1], {}, "nan"],
    "Number": ["1", True, None, [1.0], {}, 10**400],
    "StrictBool": [1, "true", None, []],
    "StrictStr": [1, None, ["a"], {}],
    "list[StrictStr]": ["a", {}, None, [1], [None]],
    "Number | None": ["1", False, [], {}],
    "dict[str, Number]": [[], 1.0, None, {"a": "b"}, {"a": None}],
    "dict[str, StrictInt]": ["a", {"a": 1.5}, {"a": [1]}],
}


@pytest.mark.parametrize("name", sorted(events.TYPES))
def test_decode_event_returns_none_for_a_field_of_the_wrong_type(name: str) -> None:
    cls = events.TYPES[name]
    plain = {"StrictInt": 1, "Number": 0.5, "StrictBool": True, "StrictStr": "a", "Number | None": None}
    plain |= {"list[StrictStr]": ["a"], "dict[str, Number]": {"a": 0.5}, "dict[str, StrictInt]": {"a": 1}}
    whole = {"event": name, **{field.name: plain[str(field.type)] for field in fields(cls)}}
    assert isinstance(events.decode_event(json.dumps(whole)), cls)
    for field in fields(cls):
        for value in WRONG[str(field.type)]:
            assert events.decode_event(json.dumps({**whole, field.name: value})) is None, (field.name, value)


@given(st.text())
def test_decode_event_never_raises(text: str) -> None:
    events.decode_event(text)


def test_fields_of_a_newer_version_are_dropped() -> None:
    line = json.dumps({**json.loads(events.encode_event(events.Warning_("careful"))), "severity": 3})
    back = events.decode_event(line)
    assert isinstance(back, events.Warning_)
    assert back.message == "careful"


def test_the_stream_has_the_documented_event_names() -> None:
    assert {"plan", "phase", "step", "sample", "checkpoint", "warning", "done", "error"} <= set(events.TYPES)
    error = {field.name for field in fields(events.Error) if field.default is MISSING and field.default_factory is MISSING}
    assert error == {"kind", "message", "hint"}


def test_what_messages_name_survives_the_stream() -> None:
    hint = Message("Set ", Setting("training.memory", "auto"), ".")
    error = events.decode_event(events.encode_event(events.Error("memory", "Out of memory", hint)))
    assert isinstance(error, events.Error) and (error.hint, mentions(error.hint)) == (hint, hint.mentions)
    assert mentions(error.message) == ()
    warning = events.decode_event(events.encode_event(events.Warning_(Message(File("a.log"), " is long"))))
    assert isinstance(warning, events.Warning_) and mentions(warning.message) == (File("a.log"),)


def test_other_programs_read_messages_as_plain_strings() -> None:
    line = json.loads(events.encode_event(events.Warning_(Message("Set ", Setting("network.rank", 8)))))
    assert line["message"] == "Set network.rank = 8"


@pytest.mark.parametrize(
    "parts", [None, [], {"message": "text"}, {"message": ["other text"]}, {"message": [{"setting": 1}]}, {"other": []}]
)
def test_a_log_without_valid_parts_is_read_as_plain_text(parts: object) -> None:
    line = json.dumps({"event": "warning", "message": "Set network.rank", "time": 1.0, "parts": parts})
    assert events.decode_event(line) == events.Warning_("Set network.rank", time=1.0, clock=0.0)
