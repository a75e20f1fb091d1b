"""Widgets take everything from their settings, and their values become nested settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel, create_model

from tests.tools.nodes.node_texts import help_page, node_texts
from trainer.config.reference import settings_list, settings_table
from trainer.config.setting import setting, settings_of

Helper = Callable[[str], ModuleType]


def canvas_nodes(helper: Helper) -> list[Any]:
    """Every node whose widgets set settings."""
    return [*helper("widgets.training_widgets").NODES, *helper("widgets.dataset_widgets").DATASET_NODES]


def widgets(helper: Helper) -> Iterator[tuple[Any, Any, Any]]:
    """Every widget with its node and its setting."""
    return ((node, widget, node.setting(widget)) for node in canvas_nodes(helper) for widget in node.widgets)


def test_a_setting_is_one_field_and_one_line_for_its_widget(helper: Helper) -> None:
    class Section(BaseModel):
        sharpness: float = setting(0.5, "How sharp lines are.", why="Half is enough.", ge=0, le=2)

    model = create_model("Model", line=(Section, Section()))
    widget = helper("widgets.widget")
    node = widget.NodeWidgets("Lines", "Lines", model, ("image", widget.Widget("sharp", "line.sharpness", step=0.1)))
    (row,) = node.widgets
    expected = {"tooltip": "How sharp lines are.", "default": 0.5, "min": 0.0, "max": 2.0, "step": 0.1, "round": False, "optional": True}
    assert (row.kind(node.setting(row)), row.arguments(node.setting(row))) == ("FLOAT", expected)
    assert node.settings({"sharp": 0.7, "image": object()}) == {"line": {"sharpness": 0.7}}
    assert settings_table(model).endswith("| `line.sharpness` | `0.5` | 0 to 2 | How sharp lines are. | Half is enough. |")
    assert list(settings_list(model)) == ["line.sharpness = 0.5  How sharp lines are."]


def test_english_texts_and_help_pages_have_the_tooltips_of_the_settings(helper: Helper) -> None:
    english = node_texts("en")
    for node, widget, described in widgets(helper):
        tooltip = widget.arguments(described)["tooltip"]
        assert english[node.id]["inputs"][widget.name]["tooltip"] == tooltip
        assert tooltip in help_page(node.id, "en")


def test_every_widget_has_what_comfyui_needs_and_a_tooltip_of_whole_sentences(helper: Helper) -> None:
    count = 0
    for node, widget, described in widgets(helper):
        arguments, kind = widget.arguments(described), widget.kind(described)
        assert arguments["tooltip"].endswith("."), widget.name
        assert len(arguments["tooltip"]) <= 180, f"{widget.name}: a tooltip is read at a glance"
        if kind in ("INT", "FLOAT"):
            assert arguments["min"] <= arguments["default"] <= arguments["max"], (node.title, widget.name)
        if kind == "FLOAT":
            assert arguments["step"] > 0, (node.title, widget.name)
        count += 1
    assert count > 110


def test_only_defaults_with_a_reason_differ_from_the_settings(helper: Helper) -> None:
    for _, widget, described in widgets(helper):
        assert (widget.default is None) == (widget.because == ""), widget.name
        if widget.default is None and not described.required:
            on_node = widget.arguments(described)["default"]
            reread = widget.value(described, on_node)
            assert (type(described.default)(reread) if described.type in (tuple, dict) else reread) == described.default, widget.name


@pytest.mark.parametrize(("on_node", "value"), [(0, "auto"), (0.0, "auto"), (3e-5, 3e-5)])
def test_zero_stands_for_auto_where_a_number_may_be_auto(helper: Helper, on_node: float, value: object) -> None:
    nodes = helper("widgets.training_widgets")
    assert nodes.TRAIN_LORA_WIDGETS.settings({"learning_rate": on_node}) == {"optimizer": {"lr": value}}


def test_zero_is_zero_where_a_number_cannot_be_auto(helper: Helper) -> None:
    assert helper("widgets.training_widgets").TRAIN_LORA_WIDGETS.settings({"max_steps": 0}) == {"training": {"max_steps": 0}}


def test_widgets_become_sections_and_a_missing_one_sets_nothing(helper: Helper) -> None:
    nodes = helper("widgets.training_widgets")
    values = {"beta1": 0.8, "logit_mean": 0.5, "beta2": 0.95, "unknown": 1}
    assert nodes.LEARNING_OPTIONS_WIDGETS.settings(values) == {
        "optimizer": {"beta1": 0.8, "beta2": 0.95},
        "objective": {"logit_mean": 0.5},
    }
    assert nodes.TRAIN_LORA_WIDGETS.settings({"name": "mine", "rank": 4}) == {"name": "mine", "network": {"rank": 4}}


def test_text_widgets_hold_lists_and_tables(helper: Helper) -> None:
    nodes = helper("widgets.training_widgets")
    assert nodes.TRAIN_LORA_WIDGETS.settings({"validation_prompts": " a cat \n\n a dog"}) == {"sample": {"prompts": ["a cat", "a dog"]}}
    text = "mid_block = 4\nup_blocks.1: 32"
    assert nodes.NETWORK_OPTIONS_WIDGETS.settings({"block_ranks": text}) == {
        "network": {"block_ranks": {"mid_block": 4.0, "up_blocks.1": 32.0}}
    }
    with pytest.raises(Exception, match="'middle' in block_ranks is not understood"):
        nodes.NETWORK_OPTIONS_WIDGETS.settings({"block_ranks": "middle"})


def test_higher_settings_win_key_by_key(helper: Helper) -> None:
    below: dict[str, dict[str, object]] = {"optimizer": {"lr": 1.0, "name": "lion"}, "sample": {"seed": 1}}
    above = {"optimizer": {"lr": 2.0}, "network": {"rank": 4}}
    assert helper("widgets.widget").merged(below, above) == {
        "optimizer": {"lr": 2.0, "name": "lion"},
        "sample": {"seed": 1},
        "network": {"rank": 4},
    }
    assert below["optimizer"]["lr"] == 1.0


def test_values_by_key_find_their_widgets_on_every_node(helper: Helper) -> None:
    values = {"network.rank": 8, "optimizer.beta1": 0.8, "objective.min_snr_gamma": 5.0}
    assert helper("widgets.training_widgets").by_widget(values) == {
        "AnimeLoRA_TrainLora": {"rank": 8},
        "AnimeLoRA_TrainOptions": {"min_snr_gamma": 5.0},
        "AnimeLoRA_LearningOptions": {"beta1": 0.8},
    }


def test_a_memory_preset_may_fill_what_a_widget_holds_only_by_default(helper: Helper) -> None:
    left = helper("widgets.training_widgets").left_to_memory_preset
    values = {"gradient_checkpointing": False, "batch_size": 1, "memory": "8gb"}
    assert left({"training": dict(values)}) == {"training": {"batch_size": 1, "memory": "8gb"}}
    changed = {"training": {**values, "gradient_checkpointing": True}}
    assert left({"training": dict(changed["training"])}) == changed
    assert left({"training": {**values, "memory": "none"}}) == {"training": {**values, "memory": "none"}}


def test_a_widget_sets_a_setting_that_no_other_widget_sets(helper: Helper) -> None:
    keys = [(node.model, widget.key) for node, widget, _ in widgets(helper)]
    assert len(set(keys)) == len(keys)
    assert all(key in settings_of(model) for model, key in keys)
