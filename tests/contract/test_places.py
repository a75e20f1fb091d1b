"""Widgets become sections of the run configuration, and sections of values become widgets."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

Helper = Callable[[str], ModuleType]


def test_widgets_become_sections_and_one_left_out_says_nothing(helper: Helper) -> None:
    places = helper("places")
    said = {"beta1": 0.8, "logit_mean": 0.5, "beta2": 0.95, "unknown": 1}
    assert places.sections(places.LEARNING_OPTIONS, said) == {
        "optimizer": {"beta1": 0.8, "beta2": 0.95},
        "objective": {"logit_mean": 0.5},
    }
    assert places.sections(places.TRAIN_LORA, {"name": "mine", "rank": 4}) == {"name": "mine", "network": {"rank": 4}}


def test_later_sections_win_key_by_key(helper: Helper) -> None:
    under: dict[str, dict[str, object]] = {"optimizer": {"lr": 1.0, "name": "lion"}, "sample": {"seed": 1}}
    over = {"optimizer": {"lr": 2.0}, "network": {"rank": 4}}
    assert helper("places").merged(under, over) == {
        "optimizer": {"lr": 2.0, "name": "lion"},
        "sample": {"seed": 1},
        "network": {"rank": 4},
    }
    assert under["optimizer"]["lr"] == 1.0


def test_values_of_keys_find_their_widgets_on_every_node(helper: Helper) -> None:
    values = {"network.rank": 8, "optimizer.beta1": 0.8, "objective.min_snr_gamma": 5.0}
    assert helper("places").widgets(values) == {
        "AnimeLoRA_TrainLora": {"rank": 8},
        "AnimeLoRA_TrainOptions": {"min_snr_gamma": 5.0},
        "AnimeLoRA_LearningOptions": {"beta1": 0.8},
    }


def test_a_memory_preset_may_fill_what_a_widget_says_only_because_it_always_says_something(helper: Helper) -> None:
    left = helper("places").left_to_memory_preset
    widgets = {"gradient_checkpointing": False, "batch_size": 1, "memory": "8gb"}
    assert left({"training": dict(widgets)}) == {"training": {"batch_size": 1, "memory": "8gb"}}
    changed = {"training": {**widgets, "gradient_checkpointing": True}}
    assert left({"training": dict(changed["training"])}) == changed
    assert left({"training": {**widgets, "memory": "none"}}) == {"training": {**widgets, "memory": "none"}}
