"""The contact sheet."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from tests.unit.dataset.drawings import folder_of
from trainer.dataset import PrepareSettings, contact_sheet, prepare_dataset
from trainer.dataset.report.contact_sheet import wrap_caption


def test_contact_sheet_has_every_image_and_its_caption(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 5)
    (tmp_path / "in" / "0.txt").write_text("青い髪, " + "long words " * 30, encoding="utf-8")
    dataset = prepare_dataset(tmp_path / "in", tmp_path, PrepareSettings(trigger="mk01", resolution=64)).dataset
    sheet = contact_sheet(dataset, columns=3, cell=128)
    assert sheet.mode == "RGB" and sheet.width == 3 * 140 + 12
    shown = sheet.tobytes()
    for item in dataset.items:
        row = Image.open(dataset.image_path(item)).resize((128, 128), Image.Resampling.LANCZOS).crop((0, 64, 128, 65)).tobytes()
        assert row in shown, item.file
    assert contact_sheet(dataset, columns=3, cell=128, limit=3).height < sheet.height


def test_contact_sheet_shows_file_names_in_a_separate_line(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 2)
    result = prepare_dataset(tmp_path / "in", tmp_path, PrepareSettings(trigger="mk01", resolution=64))
    assert len(result.sources) == 2 and all(name in {path.name for path in (tmp_path / "in").iterdir()} for name in result.sources)
    plain, named = contact_sheet(result.dataset, cell=128), contact_sheet(result.dataset, result.sources, cell=128)
    line = named.height - plain.height
    assert 10 < line < 25
    below = named.height - 12 - line  # the captions end at the same distance from the bottom
    assert named.crop((0, below, named.width, named.height)).tobytes() == plain.crop((0, below - line, plain.width, plain.height)).tobytes()


def test_captions_are_wrapped_to_the_cell() -> None:
    lines = wrap_caption("one two three " * 20, 100, 14, 3)
    assert len(lines) == 3 and lines[-1].endswith("…")
    assert "".join(wrap_caption("青" * 30, 100, 14, 9)) == "青" * 30
    assert wrap_caption("short", 100, 14, 3) == ["short"]
    assert wrap_caption("", 100, 14, 3) == []
