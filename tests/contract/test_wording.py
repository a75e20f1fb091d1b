"""What the trainer says names settings by their place on the canvas, and no command line."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from trainer.config import run_config
from trainer.plan import run_plan
from trainer.runs import events

Helper = Callable[[str], ModuleType]
TRAINER = Path(__file__).resolve().parents[2] / "trainer"
COMMAND_LINE = {"commands", "cli.py", "__main__.py", "inference.py", "merge.py"}  # nothing of these runs for a node


def said(file: Path) -> Iterator[str]:
    """The texts of a file that an error or a hint may hold; ``X`` for each value in them. Docstrings are none."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node) if part is not node}
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in parts | docs:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        (
            'It would fit (7.0 GB) with training.precision = "bf16", training.gradient_checkpointing = true; '
            'training.memory = "auto" chooses such settings.',
            "It would fit (7.0 GB) with Train LoRA → precision = bf16, Train LoRA → gradient_checkpointing = true; "
            "Machine Options → memory = auto chooses such settings.",
        ),
        ("Set training.memory to auto.", "Set Machine Options → memory to auto."),
        ("network.block_ranks.centre: no such part", "Network Options → block_ranks.centre: no such part"),
        ("network.ranks: unknown key; did you mean network.rank?", "network.ranks: unknown key; did you mean Train LoRA → rank?"),
        ("set output.wandb or training.cuda_graphs", "set output.wandb or training.cuda_graphs"),  # these are on no node
        ("C:\\loras\\base.lora and /runs/training.seed/x", "C:\\loras\\base.lora and /runs/training.seed/x"),
        ("base.lora.safetensors does not fit", "base.lora.safetensors does not fit"),
        (
            "Prepare it first: Dataset Prep on the canvas, or python -m trainer prepare FOLDER --out DIR --trigger WORD.",
            "Prepare it first: Dataset Prep on the canvas.",
        ),
        (
            "Set network.rank = 8 (or conv_rank, block_ranks), or change the file: python -m trainer export",
            "Set Train LoRA → rank = 8 (or conv_rank, block_ranks), or change the file: Export LoRA",
        ),
        ("Choose --format peft, kohya or comfyui.", "Choose format peft, kohya or comfyui."),
    ],
)
def test_a_text_of_the_trainer_names_what_is_on_the_canvas(helper: Helper, told: str, shown: str) -> None:
    assert helper("wording").on_the_canvas(told) == shown


def test_a_configuration_that_is_refused_points_at_help_and_not_at_a_command(helper: Helper) -> None:
    with pytest.raises(Exception, match=r"network\.rank") as caught:
        run_config.parse({"base": {"checkpoint": "x"}, "dataset": {"path": "x"}, "network": {"rank": 0}})
    shown = helper("wording").on_the_canvas(str(caught.value))
    assert "Train LoRA → rank: Input should be greater than or equal to 1" in shown
    assert shown.endswith("The help page of each node describes its settings.")


def test_a_run_that_cannot_fit_names_nodes(helper: Helper) -> None:
    fields: dict[str, Any] = dict.fromkeys((field.name for field in dataclasses.fields(events.Plan)), 0)
    counted = events.Plan(**{**fields, "device": "cuda", "memory_gb": 33.7})
    with pytest.raises(Exception, match=r"training\.precision") as caught:
        run_plan.require_memory(counted, 10.0, lambda changes: 33.7 - 6 * len(changes))
    shown = helper("wording").on_the_canvas(str(caught.value))
    assert "Machine Options → base_precision = int8" in shown
    assert "Machine Options → memory = auto" in shown
    assert "training." not in shown


def test_reports_of_datasets_name_the_widgets(helper: Helper) -> None:
    shown = helper("wording").on_the_canvas("captions.remove matched no tag: 'x'. Set training.wildcards, or captions.separator.")
    named = [f"Dataset Options → {widget}" for widget in ("remove_tags", "wildcards", "tag_separator")]
    assert shown == "{} matched no tag: 'x'. Set {}, or {}.".format(*named)


def test_no_text_of_the_trainer_reaches_the_canvas_with_a_command_or_the_key_of_a_widget(helper: Helper) -> None:
    wording, places = helper("wording"), helper("places")
    keys = [key for table in places.BY_NODE.values() for key in table.values() if "." in key]
    named = 0
    for file in sorted(TRAINER.rglob("*.py")):
        if COMMAND_LINE & set(file.relative_to(TRAINER).parts):
            continue
        for text in said(file):
            shown = wording.on_the_canvas(text)
            assert "python -m trainer" not in shown, f"{file.name}: {text}"
            assert "--" not in shown or "lorafile" not in file.parts, f"{file.name}: {text}"
            left = [key for key in keys if re.search(rf"\b{re.escape(key)}\b", shown)]
            assert not left, f"{file.name}: {text}"
            named += shown != text
    assert named > 10


def test_nodes_are_called_as_the_canvas_calls_them(description: dict[str, Any], helper: Helper) -> None:
    for node, title in helper("wording").TITLES.items():
        assert description["nodes"][f"AnimeLoRA_{node}"]["display_name"] == f"{title} (AnimeLoRA)"
