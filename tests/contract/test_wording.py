"""The canvas names settings by node and widget, and actions by node instead of command."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Helper = Callable[[str], ModuleType]


@pytest.fixture
def wording(helper: Helper) -> ModuleType:
    return helper("wording")


def beside(wording: ModuleType, name: str) -> ModuleType:
    """The trainer's module ``name`` in the package of ``wording``, whose messages are of the same class."""
    return importlib.import_module(f"{wording.__name__.partition('.')[0]}.trainer.{name}")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("training.memory", None, "Machine Options → memory"),
        ("training.memory", "auto", "Machine Options → memory = auto"),
        ("training.gradient_checkpointing", True, "Train LoRA → gradient checkpointing = true"),
        ("network.rank", 8, "Train LoRA → rank = 8"),
        ("network.block_ranks.centre", None, "Network Options → block ranks.centre"),
        ("output.wandb", None, "output.wandb (command line only)"),
    ],
)
def test_a_setting_is_named_by_node_and_widget(wording: ModuleType, key: str, value: Any, words: str) -> None:
    assert wording.on_canvas(wording.Message("Set ", wording.Setting(key, value), ".")) == f"Set {words}."


def test_settings_of_datasets_and_exports_are_named_by_node_and_widget(wording: ModuleType) -> None:
    named = wording.Message(wording.DatasetSetting("captions.remove"), " and ", wording.ExportOption("dtype", "fp32"))
    assert wording.on_canvas(named) == "Dataset Options → tags to remove and Export LoRA → number format = fp32"


def test_no_action_is_worded_as_a_command(wording: ModuleType) -> None:
    for action in wording.Action:
        words = wording.on_canvas(wording.Message("Use ", action, "."))
        assert "python" not in words and "--" not in words and ".md" not in words


def test_text_without_parts_stays(wording: ModuleType) -> None:
    path = "C:\\loras\\base.lora and /runs/training.seed/x"
    assert wording.on_canvas(path) == path
    assert wording.on_canvas(wording.Message("In ", wording.File(path))) == f"In {path}"


def test_a_rejected_configuration_names_widgets_and_help_pages(wording: ModuleType) -> None:
    run_config = beside(wording, "config.run_config")
    with pytest.raises(Exception, match=r"network\.rank") as caught:
        run_config.parse({"base": {"checkpoint": "x"}, "dataset": {"path": "x"}, "network": {"rank": 0, "alhpa": 1}})
    error: Any = caught.value
    message, hint = wording.on_canvas(error.message), wording.on_canvas(error.hint)
    assert "Train LoRA → rank: Input should be greater than or equal to 1 (got 0)" in message
    assert "network.alhpa: unknown setting; did you mean Train LoRA → alpha?" in message
    assert hint == "Every setting is described in the help page of each node."


def test_a_run_that_cannot_fit_names_widgets(wording: ModuleType) -> None:
    diagnosis = beside(wording, "core.diagnosis")
    hint = wording.on_canvas(diagnosis.memory_hint(30.0, [(wording.Setting("training.base_precision", "int8"), 12.0)]))
    assert hint.startswith("What helps most: Machine Options → base precision = int8 (about 12.0 GB instead of 30.0 GB).")
    out_of_memory = diagnosis.diagnose(MemoryError(), Path())
    assert "Machine Options → memory = auto" in wording.on_canvas(out_of_memory.hint)
    assert all(isinstance(part, wording.Setting) for part in out_of_memory.about)


def test_nodes_have_the_titles_of_the_canvas(description: dict[str, Any], wording: ModuleType) -> None:
    for node, title in {"DatasetPrep": "Dataset Prep", "DatasetOptions": "Dataset Options", "ExportLora": "Export LoRA"}.items():
        assert description["nodes"][f"AnimeLoRA_{node}"]["display_name"] == f"{title} (AnimeLoRA)"
