"""The report of a preparation."""

from __future__ import annotations

import html
import os
import re
from pathlib import Path

from tests.unit.dataset.drawings import drawing, folder_of
from tests.unit.dataset.helpers import WITHOUT_CLASS
from trainer.dataset import (
    PrepareSettings,
    prepare_dataset,
)
from trainer.dataset.report.html_page import SHOWN


def test_counts_are_worded_for_one_and_several_images(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 1)
    first = prepare_dataset(source, tmp_path / "out", WITHOUT_CLASS).report.text()
    assert "1 image in" in first and "1 images" not in first and "1 pictures" not in first
    assert "unchanged" not in first and "an epoch" not in first
    assert "1 unchanged since the last run" in prepare_dataset(source, tmp_path / "out", WITHOUT_CLASS).report.text()
    source.rename(tmp_path / "3_mk01")
    assert "3 images an epoch, with repeats" in prepare_dataset(tmp_path / "3_mk01", tmp_path / "out", WITHOUT_CLASS).report.text()


def test_page_has_sources_and_aspect_ratios(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 1)
    (source / "below").mkdir()
    drawing(5, (200, 120)).save(source / "below" / "a&b.png")
    dataset = prepare_dataset(source, tmp_path / "out", PrepareSettings(trigger="mk01", resolution=128)).dataset
    page = (dataset.path / "report.html").read_text(encoding="utf-8")
    assert {html.unescape(name) for name in re.findall(r"<small>([^<]*\.png)</small>", page)} == {"0.png", "below/a&b.png"}
    # with width and height given, the browser keeps the shape only of an image whose height is automatic
    rule = re.search(r"figure img \{([^}]*)\}", page)
    assert rule is not None and "height: auto" in rule[1]


def test_page_folds_long_tag_tables(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 1)
    (source / "0.txt").write_text(", ".join(f"tag {number:03d}" for number in range(260)), encoding="utf-8")
    page = (prepare_dataset(source, tmp_path / "out", WITHOUT_CLASS).dataset.path / "report.html").read_text(encoding="utf-8")
    rows = re.findall(r"<tr><td>(tag \d+|mk01)</td>", page)
    assert len(rows) == SHOWN < 30
    folded = re.search(r"<details>.*?</details>", page, re.S)
    assert folded is not None and f"{261 - SHOWN} more" in folded[0]
    assert len(re.findall(r"tag \d+ \(1\)", folded[0])) == 200 - SHOWN and "… and 61 more" in folded[0]


def test_unused_models_are_reported(tmp_path: Path) -> None:
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


def test_page_escapes_captions_and_names(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 1)
    (tmp_path / "in" / "0.txt").write_text("<script>alert(1)</script>", encoding="utf-8")
    if os.name != "nt":
        (tmp_path / "in" / "x&y<b>.png").write_bytes(b"")
    dataset = prepare_dataset(tmp_path / "in", tmp_path, PrepareSettings(trigger="mk01", resolution=64)).dataset
    page = (dataset.path / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in page and "&lt;script&gt;" in page and "<b>.png" not in page


def test_report_warns_about_mistakes_of_beginners(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 2, (100, 100))
    drawing(5, (400, 100)).save(source / "wide.png")
    (source / "0.txt").write_text("smile", encoding="utf-8")
    warnings = " ".join(prepare_dataset(source, tmp_path / "out", PrepareSettings(resolution=256, shape="square")).report.warnings)
    parts = ("no trigger word", "Only 3 images", "2 images of 3 had no caption", "1 image of 3 loses a fifth", "enlarged more than 2×")
    for part in parts:
        assert part in warnings, part
