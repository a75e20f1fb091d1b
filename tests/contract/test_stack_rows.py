"""The list of LoRA Stack, as the browser writes it and as API clients may send it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Helper = Callable[[str], ModuleType]
LISTED = ["a.safetensors", "sub/b.safetensors"]


def test_rows_keep_their_order_and_clip_defaults_to_strength(helper: Helper) -> None:
    rows = helper("loras.stack_rows")
    text = json.dumps(
        [
            {"on": True, "name": "sub/b.safetensors", "strength": 0.8, "clip": 0.3},
            {"name": "a.safetensors"},
            {"on": False, "name": "gone.safetensors", "strength": -2, "clip": None},
        ]
    )
    assert rows.read_rows(text, LISTED) == [
        rows.StackRow(True, "sub/b.safetensors", 0.8, 0.3),
        rows.StackRow(True, "a.safetensors", 1.0, 1.0),
        rows.StackRow(False, "gone.safetensors", -2.0, -2.0),
    ]
    assert rows.read_rows("", LISTED) == rows.read_rows("[]", LISTED) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "cannot be read"),
        ("{}", "is not a list"),
        ("[" * 20_000, "cannot be read"),
        ("x" * 200_000, "characters"),
        ("[1]", "Row 1 of LoRA Stack is not an object"),
        ('[{"nmae": "a"}]', "unknown key 'nmae'"),
        ('[{"name": "a.safetensors"}, {"on": 1, "name": "a"}]', "Row 2"),
        ('[{"name": 5}]', "Row 1"),
        ('[{"name": "a.safetensors", "strength": "1"}]', "'strength' is not a number"),
        ('[{"name": "a.safetensors", "strength": true}]', "'strength' is not a number"),
        ('[{"name": "a.safetensors", "strength": NaN}]', "outside -100 to 100"),
        ('[{"name": "a.safetensors", "clip": 1e999}]', "'clip' is outside"),
        ('[{"name": "a.safetensors", "strength": 1' + "0" * 400 + "}]", "outside -100 to 100"),
        ('[{"name": ""}]', "has no LoRA"),
        ('[{"name": "../../etc/passwd"}]', "not in ComfyUI's list"),
        ('[{"name": "/etc/passwd"}]', "not in ComfyUI's list"),
        (json.dumps([{"on": False, "name": "a"}] * 65), "65 rows"),
        (["a"], "list, not text"),
        (None, "NoneType, not text"),
    ],
)
def test_invalid_rows_are_refused(helper: Helper, text: Any, reason: str) -> None:
    error = helper("loras.stack_rows").UserError
    with pytest.raises(error, match="LoRA") as refused:
        helper("loras.stack_rows").read_rows(text, LISTED)
    assert reason in str(refused.value)
    assert len(str(refused.value)) < 600


@pytest.mark.skipif(shutil.which("node") is None, reason="NOT CHECKED: Node.js runs the browser's side")
def test_widget_accepts_the_same_rows_as_the_node(helper: Helper) -> None:
    """The widget keeps an invalid text unchanged, and the node refuses it with the number of the row."""
    read = helper("loras.stack_rows").read_rows
    wrong = [
        '[{"name": null}]', '[{"name": 3}]', '[{"name": ["a"]}]', '[{"on": "yes"}]', '[{"strength": "x"}]', '[{"strength": null}]',
        '[{"clip": []}]', "[1]", "{}", "null", "[[]]", "{", '[{"strength": true}]',
    ]  # fmt: skip
    fine = ["[]", "", '[{"on": false, "name": "gone.safetensors", "clip": null}]', '[{"name": "a.safetensors", "clip": 0.5}]']
    module = (Path(__file__).resolve().parents[2] / "web" / "lora" / "rowlist.js").as_uri()
    script = f"import {{ parseRows }} from {json.dumps(module)};" + (
        "process.stdout.write(JSON.stringify(JSON.parse(process.argv[1]).map((text) => parseRows(text))));"
    )
    command = ["node", "--input-type=module", "-e", script, json.dumps([*wrong, *fine])]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60, check=True)
    parsed = json.loads(done.stdout)
    for text, rows in zip([*wrong, *fine], parsed, strict=True):
        try:
            given = read(text, LISTED)
        except Exception:
            assert rows is None, text
        else:
            assert rows is not None and [row["name"] for row in rows] == [row.name for row in given], text
