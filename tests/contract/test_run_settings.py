"""The settings of a run become values of widgets, from which the same run configuration results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import pytest

from trainer.config import presets
from trainer.config.run_config import RunConfig, parse

Helper = Callable[[str], ModuleType]
OWN: Mapping[str, Any] = {"base": {"checkpoint": "/models/anime.safetensors"}, "dataset": {"path": "/data"}, "output": {"runs": "/runs"}}
PATHS = ("base.checkpoint", "base.lora", "base.vae", "base.text_encoder")
ODD: Mapping[str, Any] = {
    "name": "odd",
    "network": {"rank": 3, "alpha": 1.5, "block_ranks": {"mid_block": 4, "up_blocks.1": 32}, "block_alphas": {"mid_block": 0.125}},
    "optimizer": {"lr": "auto", "schedule": "piecewise_constant", "step_rules": "1:100,0.1"},
    "training": {"max_steps": 70, "gradient_checkpointing": True, "epochs": 3, "seed": 7},
    "sample": {"prompts": ["a girl --d 5", "(a cat:1.2)"], "negative": "blurry", "width": 512},
}


def values(helper: Helper, config: RunConfig, menu: Callable[[str], str | None] = lambda path: path) -> Any:
    return helper("history.run_settings").widget_values(config, dict.fromkeys(PATHS, menu))


def rebuilt(helper: Helper, found: Any) -> RunConfig:
    """The configuration that the nodes make of the values of their widgets; a menu's words for no path are no path."""
    widgets, whole = helper("widgets.training_widgets"), dict(OWN)
    for node in widgets.NODES:
        table = found.values[node.id]
        unset = {widget.name: "" for widget in node.widgets if widget.key in PATHS and table.get(widget.name) == widget.default}
        whole = helper("widgets.widget").merged(whole, node.settings({**table, **unset}))
    return parse(whole)


@pytest.mark.parametrize(
    "settings",
    [{}, ODD, *({"preset": name} for name in presets.names())],
    ids=["defaults", "odd values", *presets.names()],
)
def test_widgets_with_the_settings_of_a_run_make_the_same_run(helper: Helper, settings: Mapping[str, Any]) -> None:
    config = parse({**OWN, **settings})
    found = values(helper, config)
    assert found.not_set == []
    assert rebuilt(helper, found) == config


def test_only_nodes_with_a_changed_setting_are_needed(helper: Helper) -> None:
    assert values(helper, parse({**OWN, "network": {"rank": 3}})).needed == []
    changed = parse({**OWN, "network": {"dora": True}, "training": {"ema_decay": 0.5}})
    assert values(helper, changed).needed == ["AnimeLoRA_TrainOptions", "AnimeLoRA_LearningOptions"]


def test_what_no_widget_can_show_is_reported(helper: Helper) -> None:
    odd = {"training": {"epochs": 20_000, "fused": "off"}, "output": {"runs": "/elsewhere", "wandb": True}}
    found = values(helper, parse({**OWN, **odd}), menu=lambda path: None)
    reported = {(each.key, each.reason, each.node, each.widget, each.value) for each in found.not_set}
    assert reported == {
        ("base.checkpoint", "missing", "AnimeLoRA_TrainLora", "checkpoint", "anime.safetensors"),
        ("training.epochs", "value", "AnimeLoRA_TrainLora", "epochs", "20000"),
        ("training.fused", "no widget", "", "", "off"),
        ("output.wandb", "no widget", "", "", "True"),
    }
    assert "epochs" not in found.values["AnimeLoRA_TrainLora"]
