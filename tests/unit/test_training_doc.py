"""docs/training.md lists every configuration key with its true default, and its example is a valid configuration."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from trainer.config import run_config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `([a-z0-9_.]+)` \| (.+?) \|", TEXT.split("## Every key")[1].split("\n## ")[0], re.MULTILINE))


def _value(text: str) -> Any:
    return ast.literal_eval({"`true`": "True", "`false`": "False"}.get(text, text.strip("`")))


def _defaults() -> dict[str, Any]:
    required = {"base": {"checkpoint": "x"}, "dataset": {"path": "y"}}
    flat = {}
    for section, value in run_config.parse(required).model_dump(mode="json").items():
        if isinstance(value, dict):
            flat.update({f"{section}.{key}": item for key, item in value.items()})
        else:
            flat[section] = value
    return flat


def test_the_table_has_exactly_the_keys_of_the_configuration() -> None:
    assert sorted(ROWS) == sorted(run_config.keys())


@pytest.mark.parametrize("key", run_config.keys())
def test_the_table_tells_the_true_default(key: str) -> None:
    if ROWS[key] == "required":
        section, name = key.split(".")
        assert run_config.RunConfig.model_fields[section].annotation.model_fields[name].is_required()  # type: ignore[union-attr]
    else:
        assert _value(ROWS[key]) == _defaults()[key]


def test_the_example_is_a_valid_configuration() -> None:
    example = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)[0]
    assert run_config.parse(tomllib.loads(example)).name == "my_style"
