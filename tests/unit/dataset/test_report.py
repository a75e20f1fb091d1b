"""The report says what is true and can be read."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from tests.unit.dataset.pictures import drawing, folder_of
from trainer.cli import main
from trainer.core.errors import UserError
from trainer.dataset import PrepareSettings, prepare_dataset
from trainer.dataset.report.html_page import SHOWN

SETTINGS = PrepareSettings(trigger="mk01", resolution=64)


def test_one_image_is_one_image_and_a_first_run_has_nothing_unchanged(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 1)
    first = prepare_dataset(source, tmp_path / "out", SETTINGS).report.text()
    assert "1 image in" in first and "1 images" not in first and "1 pictures" not in first
    assert "unchanged" not in first and "an epoch" not in first
    assert "1 unchanged since the last run" in prepare_dataset(source, tmp_path / "out", SETTINGS).report.text()
    source.rename(tmp_path / "3_mk01")
    assert "3 images an epoch, with repeats" in prepare_dataset(tmp_path / "3_mk01", tmp_path / "out", SETTINGS).report.text()


def test_page_names_sources_and_keeps_shapes(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 1)
    (source / "below").mkdir()
    drawing(5, (200, 120)).save(source / "below" / "a&b.png")
    dataset = prepare_dataset(source, tmp_path / "out", PrepareSettings(trigger="mk01", resolution=128)).dataset
    page = (dataset.path / "report.html").read_text(encoding="utf-8")
    assert {html.unescape(name) for name in re.findall(r"<small>([^<]*\.png)</small>", page)} == {"0.png", "below/a&b.png"}
    # with width and height given, the browser keeps the shape only of an image whose height is automatic
    rule = re.search(r"figure img \{([^}]*)\}", page)
    assert rule is not None and "height: auto" in rule[1]


def test_tags_beyond_the_first_unfold(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 1)
    (source / "0.txt").write_text(", ".join(f"tag {number:03d}" for number in range(260)), encoding="utf-8")
    page = (prepare_dataset(source, tmp_path / "out", SETTINGS).dataset.path / "report.html").read_text(encoding="utf-8")
    rows = re.findall(r"<tr><td>(tag \d+|mk01)</td>", page)
    assert len(rows) == SHOWN < 30
    folded = re.search(r"<details>.*?</details>", page, re.S)
    assert folded is not None and f"{261 - SHOWN} more" in folded[0]
    assert len(re.findall(r"tag \d+ \(1\)", folded[0])) == 200 - SHOWN and "… and 61 more" in folded[0]


@pytest.mark.parametrize("captions", [True, False])
def test_a_tagger_that_is_not_there_is_refused_even_where_it_has_nothing_to_do(tmp_path: Path, captions: bool) -> None:
    source = folder_of(tmp_path / "in", 1)
    if captions:
        (source / "0.txt").write_text("smile", encoding="utf-8")
    arguments = ["prepare", str(source), "--out", str(tmp_path / "out"), "--trigger", "mk01", "--resolution", "64"]
    assert main([*arguments, "--tagger", str(tmp_path / "nope")]) == 1
    assert not (tmp_path / "out").exists()
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"selected_tags\.csv is missing"):
        prepare_dataset(source, tmp_path / "out", PrepareSettings.model_validate({"tagger": {"model": str(tmp_path / "model.onnx")}}))
    with pytest.raises(UserError, match=r"face model .* does not exist"):
        prepare_dataset(source, tmp_path / "out", PrepareSettings(trigger="mk01", face_model=str(tmp_path / "nope.onnx")))


def test_models_that_other_settings_leave_unused_are_named(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 1)
    (tmp_path / "model.onnx").write_bytes(b"x")
    (tmp_path / "selected_tags.csv").write_text("tag_id,name,category,count\n1,smile,0,1\n", encoding="utf-8")
    data = {
        "trigger": "mk01", "resolution": 64, "captions": {"source": "instance"}, "face_model": str(tmp_path / "model.onnx"),
        "tagger": {"model": str(tmp_path)},
    }  # fmt: skip
    told = prepare_dataset(source, tmp_path / "out", PrepareSettings.model_validate(data)).report.warnings
    assert 'The tagger is not used: captions.source is "instance".' in told
    assert 'The face detector is not used: crop is "top", not "face".' in told
