"""Dataset Prep on the canvas and ``python -m trainer prepare`` write the same dataset."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.server.comfy_server import Server
from tests.server.graphs import node, prepare
from trainer.cli import main
from trainer.dataset import open_dataset

OPTIONS = {
    "tagger": "(none)", "use_tags": "where there is no caption", "tag_threshold": 0.35, "character_threshold": 0.85, "never_tag": "",
    "replace_tags": "", "remove_tags": "face", "first_tags": "", "tag_order": "alphabetical", "shuffle_tags": True, "keep_tokens": 2,
    "caption_dropout": 0.1, "tag_dropout": 0.0, "mirror": True, "transparency": "background", "background": "#ff00ff", "filter": "bicubic",
    "smallest_side": 32, "drop_near_duplicates": False, "near_distance": 12, "bucket_step": 64, "bucket_min": 0, "bucket_max": 0,
    "bucket_no_upscale": False, "face_detector": "(none)", "regularisation_folder": "(none)", "regularisation_weight": 1.0,
}  # fmt: skip
AS_ARGUMENTS = [
    *("--remove", "face", "--set", "captions.order=alphabetical", "--shuffle", "--keep-tokens", "2", "--caption-dropout", "0.1"),
    *("--set", "training.flip=true", "--background", "#ff00ff", "--set", "resample=bicubic", "--set", "clean.min_side=32"),
    *("--set", "clean.near_duplicates=false", "--square", "--crop", "centre"),
]


def test_node_and_command_line_write_the_same_dataset(server: Server, tmp_path: Path) -> None:
    graph = {"options": node("AnimeLoRA_DatasetOptions", **OPTIONS), "prep": prepare(trigger_word="sameToken")}
    graph["prep"]["inputs"]["options"] = ["options", 0]
    server.run(graph)
    widgets = graph["prep"]["inputs"]
    made = open_dataset(server.base / "output" / "animelora" / "datasets" / f"sameToken_{widgets['class_description']}")
    source = server.base / "input" / widgets["folder"]
    arguments = ["--trigger", "sameToken", "--class", widgets["class_description"], "--resolution", str(widgets["resolution"])]
    status = main(["prepare", str(source), "--out", str(tmp_path), *arguments, *AS_ARGUMENTS, "--json"])
    assert status == 0
    by_hand = open_dataset(tmp_path / made.path.name)
    assert by_hand.hash == made.hash
    assert list(by_hand.items) == list(made.items)
    assert made.training == by_hand.training and made.training.flip and made.training.keep_tokens == 2


@pytest.mark.parametrize("linked", [False, True], ids=["typed", "linked"])
def test_edited_caption_and_deleted_dataset_are_prepared_again_and_nothing_else(server: Server, linked: bool) -> None:
    word = f"edited{linked}"
    graph = {"prep": prepare(trigger_word=word)}
    if linked:
        graph |= {"word": node("PrimitiveString", value=word)}
        graph["prep"]["inputs"]["trigger_word"] = ["word", 0]
    folder = server.base / "output" / "animelora" / "datasets" / f"{word}_face"
    server.forget()
    assert "prep" in server.executed(graph)
    assert "prep" not in server.executed(graph)
    first = min(folder.glob("*.txt"))
    first.write_text(f"{word}, changed by hand", encoding="utf-8")
    assert "prep" in server.executed(graph)
    assert first.read_text(encoding="utf-8") == f"{word}, changed by hand"
    assert "prep" not in server.executed(graph)
    for _ in range(2):
        shutil.rmtree(folder)
        assert "prep" in server.executed(graph)
        assert len(open_dataset(folder).items) == 4
        assert "prep" not in server.executed(graph)
