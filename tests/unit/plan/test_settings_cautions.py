"""Warnings about settings that a run can start with."""

from __future__ import annotations

import pytest

from trainer.config.run_config import RunConfig, parse
from trainer.core.messages import Setting
from trainer.plan.settings_cautions import settings_cautions

TRIGGERS = ["myStyle"]


def config_of(rank: int = 16, alpha: float = 16, prompts: list[str] | None = None, **network: object) -> RunConfig:
    """A configuration with these settings."""
    sample = {"prompts": prompts or []}
    return parse(
        {"base": {"checkpoint": "x"}, "dataset": {"path": "x"}, "network": {"rank": rank, "alpha": alpha, **network}, "sample": sample}
    )


@pytest.mark.parametrize(("rank", "alpha"), [(16, 16), (16, 4), (16, 64), (32, 16)])
def test_alpha_near_rank_causes_no_warning(rank: int, alpha: float) -> None:
    assert settings_cautions(config_of(rank, alpha), TRIGGERS) == []


@pytest.mark.parametrize(("alpha", "word"), [(1, "weakly"), (128, "strongly")])
def test_alpha_far_from_rank_suggests_the_rank(alpha: float, word: str) -> None:
    (caution,) = settings_cautions(config_of(16, alpha), TRIGGERS)
    assert word in caution and Setting("network.alpha", 16) in caution.mentions
    assert settings_cautions(config_of(64, 1, rslora=True), TRIGGERS) == []  # where alpha is divided by the root of the rank


def test_prompts_without_the_trigger_word_are_named() -> None:
    assert settings_cautions(config_of(prompts=["mystyle girl", "a girl in MYSTYLE"]), TRIGGERS) == []
    (caution,) = settings_cautions(config_of(prompts=["myStyle girl", "a boy"]), TRIGGERS)
    assert '"a boy"' in caution and "myStyle" in caution
    (caution,) = settings_cautions(config_of(prompts=["a girl", "a boy"]), ["one", "two"])
    assert "2 validation prompts" in caution and "one, two" in caution
    assert settings_cautions(config_of(prompts=["two girls"]), ["one", "two"]) == []


@pytest.mark.parametrize("triggers", [[], [""]])
def test_dataset_without_trigger_word_causes_one_warning(triggers: list[str]) -> None:
    (caution,) = settings_cautions(config_of(prompts=["a girl"]), triggers)
    assert "no trigger word" in caution
