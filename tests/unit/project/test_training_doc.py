"""The tables of settings in docs/ are made from the settings, and the example of docs/training.md is a valid configuration."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tests.tools.write_texts import DOCS, generated_docs
from trainer.config import run_config
from trainer.config.prepare_settings import PrepareSettings
from trainer.config.run_config import RunConfig
from trainer.config.setting import settings_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = [(path, key) for path, model in DOCS.items() for key in settings_of(model)]
ENTIRE: dict[str, BaseModel] = {
    "docs/training.md": RunConfig.model_validate({"base": {"checkpoint": "x"}, "dataset": {"path": "y"}}),
    "docs/datasets.md": PrepareSettings.model_validate({"shape": "auto", "buckets": {}, "tagger": {"model": "x"}}),
}


def rows(path: str) -> dict[str, list[str]]:
    """The cells of a document's table of settings, by key."""
    text = (ROOT / path).read_text(encoding="utf-8").split("<!-- settings:")[1].split("<!-- end of settings -->")[0]
    cells = (re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("| `"))
    return {key.strip(" `"): [cell.strip().replace("\\|", "|") for cell in rest] for key, *rest in cells}


@pytest.mark.parametrize("path", DOCS)
def test_the_tables_are_up_to_date(path: str) -> None:
    assert generated_docs()[path] == (ROOT / path).read_text(encoding="utf-8"), "run: python -m tests.tools.write_texts"


@pytest.mark.parametrize(("path", "key"), SETTINGS, ids=[key for _, key in SETTINGS])
def test_a_row_gives_the_default_of_the_model_and_a_reason(path: str, key: str) -> None:
    default, values, what, why = rows(path)[key]
    assert values and what.endswith((".", ")", "`"))
    if default == "required":
        assert settings_of(DOCS[path])[key].required
        return
    expected: Any = ENTIRE[path].model_dump(mode="json")
    for part in key.split("."):
        expected = expected[part]
    assert tomllib.loads(f"value = {default.strip('`')}")["value"] == expected
    assert why.endswith(".")


def test_the_example_is_a_valid_configuration() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    example = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)[0]
    assert run_config.parse(tomllib.loads(example)).name == "my_style"
