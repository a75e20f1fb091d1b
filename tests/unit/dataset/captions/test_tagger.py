"""The tagger is run on a small ONNX model with the WD taggers' contract, built here by the onnx package."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.unit.dataset.drawings import drawing
from trainer.core.errors import UserError
from trainer.dataset import CaptionSettings, PrepareSettings, TaggerSettings, prepare_dataset
from trainer.dataset.captions.booru import spaced
from trainer.dataset.captions.tagger import Tag, Tagger, choose, model_input

onnx = pytest.importorskip("onnx")


pytest.importorskip("onnxruntime")


SIDE = 32


TAGS = [
    ("general", 9), ("explicit", 9), ("blue_theme", 0), ("green_theme", 0), ("red_theme", 0), ("hatsune_miku", 4), (">_<", 0), ("never", 0),
]  # fmt: skip


def build(folder: Path, batch: int | str = "N", *, side: int = SIDE, outputs: int = len(TAGS)) -> Path:
    """Scores: rating general .9 and explicit .2; mean blue, green and red of the picture / 255; .9, .6 and .01."""
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir(parents=True, exist_ok=True)
    weights = np.zeros((3, outputs), np.float32)
    bias = np.array([0.9, 0.2, 0, 0, 0, 0.9, 0.6, 0.01][:outputs], np.float32)
    for channel in range(3):  # the input is BGR
        weights[channel, 2 + channel] = 1 / 255
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], ["score"]),
        helper.make_node("Add", ["score", "b"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes, "tagger",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, side, side, 3])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, outputs])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(bias, "b")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    rows = "".join(f"{i},{name},{category},{100 - i}\n" for i, (name, category) in enumerate(TAGS))
    (folder / "selected_tags.csv").write_text("tag_id,name,category,count\n" + rows, encoding="utf-8")
    return folder


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("RGB", size, colour)


@pytest.mark.parametrize("batch", ["N", 1, 4])
def test_scores_are_those_of_the_model(tmp_path: Path, batch: int | str) -> None:
    tagger = Tagger(build(tmp_path, batch))
    pictures = [plain((255, 51, 102)), plain((0, 0, 204)), plain((10, 20, 30))] * 5
    first, second, *_ = tagger.tag(pictures)
    scores = {tag.name: tag.score for tag in first}
    assert scores["red_theme"] == pytest.approx(1.0) and scores["blue_theme"] == pytest.approx(0.4)
    assert {tag.name: tag.score for tag in second}["blue_theme"] == pytest.approx(0.8)
    assert "never" not in scores
    assert len(tagger.tag(pictures)) == 15


def test_model_input_is_a_white_square_in_bgr() -> None:
    array = model_input(plain((255, 0, 10), (64, 32)), SIDE)
    assert array.shape == (SIDE, SIDE, 3) and array.dtype == np.float32
    assert array[0, 0].tolist() == [255, 255, 255] and array[SIDE // 2, SIDE // 2].tolist() == [10, 0, 255]


def test_choice_follows_thresholds_categories_and_blacklist() -> None:
    tags = [Tag("explicit", 9, 0.4), Tag("general", 9, 0.6), Tag("hatsune_miku", 4, 0.8), Tag("long_hair", 0, 0.7), Tag("o_o", 0, 0.5)]
    base = TaggerSettings(model="m")

    def chosen(*, underscores: bool = False, **changes: Any) -> list[str]:
        return choose(tags, base.model_copy(update=changes), underscores=underscores)

    assert chosen() == ["long hair", "o_o"]
    assert chosen(underscores=True) == ["long_hair", "o_o"]
    assert chosen(threshold=0.6) == ["long hair"]
    assert chosen(character_threshold=0.75) == ["hatsune miku", "long hair", "o_o"]
    assert chosen(character_threshold=0.75, characters=False) == ["long hair", "o_o"]
    assert chosen(ratings=True) == ["general", "long hair", "o_o"]
    assert chosen(blacklist=("long hair",)) == ["o_o"]


def test_emoticons_keep_their_underscores() -> None:
    assert [spaced(tag) for tag in (">_<", "o_o", "0_0", "(o)_(o)", "^_^", "blue_hair", "1girl")] == [
        ">_<", "o_o", "0_0", "(o)_(o)", "^_^", "blue hair", "1girl",
    ]  # fmt: skip


def settings(model: Path, **captions: Any) -> PrepareSettings:
    return PrepareSettings(trigger="mk01", resolution=64, tagger=TaggerSettings(model=str(model)), captions=CaptionSettings(**captions))


def test_images_without_a_caption_are_tagged(tmp_path: Path) -> None:
    model = build(tmp_path / "model")
    (tmp_path / "in").mkdir()
    for name, colour in (("a.png", (255, 0, 0)), ("b.png", (0, 0, 255))):
        image = plain(colour)
        image.paste((0, 0, 0), (0, 0, 8, 8))  # one colour alone would be left out as blank
        image.save(tmp_path / "in" / name)
    (tmp_path / "in" / "b.txt").write_text("smile", encoding="utf-8")
    result = prepare_dataset(tmp_path / "in", tmp_path / "out", settings(model))
    assert [item.caption for item in result.dataset.items] == ["mk01, hatsune miku, red theme, >_<", "mk01, smile"]
    assert result.report.captions_from == {"tagger": 1, ".txt": 1}
    both = prepare_dataset(tmp_path / "in", tmp_path / "out", settings(model, source="sidecar+tags", underscores=True))
    assert both.dataset.items[1].caption == "mk01, smile, hatsune_miku, blue_theme, >_<"
    only = prepare_dataset(tmp_path / "in", tmp_path / "out", settings(model, source="tags", remove=(">_<",)))
    assert only.dataset.items[1].caption == "mk01, hatsune miku, blue theme"


def test_model_runs_once_per_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(tmp_path / "model")
    (tmp_path / "in").mkdir()
    for seed in range(3):
        drawing(seed).save(tmp_path / "in" / f"{seed}.png")
    seen: list[int] = []
    tag = Tagger.tag

    def counted(self: Tagger, pictures: Sequence[Image.Image]) -> list[list[Tag]]:
        seen.append(len(pictures))
        return tag(self, pictures)

    monkeypatch.setattr(Tagger, "tag", counted)
    prepare_dataset(tmp_path / "in", tmp_path / "out", settings(model))
    drawing(9).save(tmp_path / "in" / "9.png")
    prepare_dataset(tmp_path / "in", tmp_path / "out", settings(model, underscores=True))
    assert seen == [3, 1]


def test_missing_parts_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Tagger(tmp_path / "nothing.onnx")
    with pytest.raises(UserError, match=r"no \.onnx file"):
        Tagger(tmp_path)
    folder = build(tmp_path / "a")
    (folder / "selected_tags.csv").unlink()
    with pytest.raises(UserError, match=r"selected_tags\.csv is missing"):
        Tagger(folder)
    with pytest.raises(UserError, match=r"gives 5 tags, its selected_tags\.csv lists 8"):
        Tagger(build(tmp_path / "b", outputs=5)).tag([drawing(1)])
    (build(tmp_path / "c") / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(UserError, match="cannot be loaded"):
        Tagger(tmp_path / "c")
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "onnxruntime":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="pip install onnxruntime"):
        Tagger(build(tmp_path / "d"))
