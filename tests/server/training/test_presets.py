"""Presets through the API: they fill in omitted widgets, and are refused for another model family."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server.comfy_server import PromptFailed, Server
from tests.server.files import TINY
from tests.server.graphs import Graph, node, prepare
from trainer.config import presets


def graph(name: str, **widgets: Any) -> Graph:
    """A training of one step with only these widgets."""
    short = {"max_steps": 1, "validate_every": 0, "precision": "fp32", "gradient_accumulation": 1}
    train = node("AnimeLoRA_TrainLora", dataset=["prep", 0], checkpoint=TINY, name=name, **short, **widgets)
    return {"prep": prepare(), "train": train}


def kept(server: Server, name: str) -> dict[str, Any]:
    """The configuration of the one run of a LoRA's name."""
    (config,) = (server.base / "output" / "animelora" / "runs").glob(f"{name}-*/config.json")
    return dict(json.loads(config.read_text(encoding="utf-8")))


def test_preset_fills_in_omitted_widgets(server: Server) -> None:
    described = graph("by_preset", preset="concept-sd15", rank=2)
    described["train"]["inputs"]["options"] = ["options", 0]
    described["options"] = node("AnimeLoRA_TrainOptions", noise_offset=0.01)
    server.run(described)
    config = kept(server, "by_preset")
    given = {"network.rank": 2, "training.gradient_accumulation": 1, "objective.noise_offset": 0.01}
    for key, value in (presets.values("concept-sd15") | given).items():
        section, last = key.split(".")
        assert config[section][last] == value, key


def test_preset_for_another_family_is_refused(server: Server) -> None:
    with pytest.raises(PromptFailed, match="style-sd15"):
        server.run(graph("wrong_preset", preset="style-sdxl"))
    assert not list((server.base / "output" / "animelora" / "runs").glob("wrong_preset-*"))


def test_route_serves_exactly_the_trainers_presets(server: Server) -> None:
    handed = server.get("/animelora/presets")
    assert set(handed) == set(presets.names())
    for name, nodes in handed.items():
        values = [value for table in nodes.values() for value in table.values()]
        assert sorted(map(repr, values)) == sorted(map(repr, presets.values(name).values()))
