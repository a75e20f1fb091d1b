"""Combine Datasets, also chained: one LoRA from several datasets, each with its repeats and weight."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.server.comfy_server import PromptFailed, Server
from tests.server.files import TINY
from tests.server.graphs import node, prepare, train_settings
from tests.unit.dataset.drawings import folder_of
from trainer.core.files.reading import sha256_file
from trainer.dataset import open_dataset


def test_three_datasets_train_one_lora_with_their_repeats_and_weights(server: Server) -> None:
    both = node("AnimeLoRA_CombineDatasets", first=["one", 0], second=["two", 0], first_repeats=2, second_weight=0.5)
    graph = {
        "one": prepare(trigger_word="styleWord"),
        "two": prepare(trigger_word="heroWord"),
        "three": prepare(trigger_word="thingWord"),
        "both": both,
        "all": node("AnimeLoRA_CombineDatasets", first=["both", 0], second=["three", 0], first_repeats=3, second_repeats=4),
        "train": node("AnimeLoRA_TrainLora", dataset=["all", 0], checkpoint=TINY, **train_settings(name="combined", max_steps=1)),
        "words": node("AnimeLoRA_LoadLora", model=["base", 0], clip=["base", 1], lora=["train", 0], lora_name="(lora input)"),
        "base": node("AnimeLoRA_LoadDemoBase", checkpoint=TINY),
        "show": node("PreviewAny", source=["words", 2]),
    }
    graph["words"]["inputs"] |= {"strength_model": 1.0, "strength_clip": 1.0}
    outputs = server.run(graph)
    (config,) = (server.base / "output" / "animelora" / "runs").glob("combined-*/config.json")
    dataset = json.loads(config.read_text(encoding="utf-8"))["dataset"]
    parts = [dataset, *dataset["more"]]
    assert [(part["repeats"], part["loss_weight"]) for part in parts] == [(6, 1.0), (3, 0.5), (4, 1.0)]
    assert [part["path"].rsplit("_", 1)[0].split("datasets")[1][1:] for part in parts] == ["styleWord", "heroWord", "thingWord"]
    assert [part["hash"] for part in parts] == [open_dataset(Path(part["path"])).hash for part in parts]
    words = str(outputs["show"])
    assert all(word in words for word in ("styleWord", "heroWord", "thingWord"))


def test_sources_with_equal_trigger_and_class_are_two_datasets(server: Server) -> None:
    folders = {}
    for number, name in enumerate(("one", "two")):
        folders[name] = server.base / "input" / f"same_{name}"
        folder_of(folders[name], 4 + number, first=100 * number)
    graph = {name: prepare(folder=folder.name, trigger_word="sameWord") for name, folder in folders.items()}
    graph["both"] = node("AnimeLoRA_CombineDatasets", first=["one", 0], second=["two", 0])
    graph["train"] = node("AnimeLoRA_TrainLora", dataset=["both", 0], checkpoint=TINY, **train_settings(name="two_as_one", max_steps=1))
    server.run(graph)
    (config,) = (server.base / "output" / "animelora" / "runs").glob("two_as_one-*/config.json")
    dataset = json.loads(config.read_text(encoding="utf-8"))["dataset"]
    parts = [open_dataset(Path(part["path"])) for part in (dataset, *dataset["more"])]
    prepared = [{row["source_sha256"] for row in part.rows()} for part in parts]
    assert prepared == [{sha256_file(path) for path in folder.iterdir()} for folder in folders.values()]


def test_input_that_is_no_dataset_is_named(server: Server) -> None:
    with pytest.raises(PromptFailed, match="dataset input got int"):
        graph = {"one": prepare(), "both": node("AnimeLoRA_CombineDatasets", first=["one", 0], second=5)}
        server.run({**graph, "show": node("PreviewAny", source=["both", 0])})
