"""The contact sheet."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from tests.unit.dataset.drawings import folder_of
from trainer.dataset import Dataset, PrepareSettings, contact_sheet, prepare_dataset
from trainer.dataset.report.contact_sheet import wrap_caption


def sheet_of(dataset: Dataset, **options: int) -> Image.Image:
    return contact_sheet(dataset, **options)


def test_contact_sheet_has_every_image_and_its_caption(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 5)
    (tmp_path / "in" / "0.txt").write_text("青い髪, " + "long words " * 30, encoding="utf-8")
    dataset = prepare_dataset(tmp_path / "in", tmp_path, PrepareSettings(trigger="mk01", resolution=64)).dataset
    sheet = sheet_of(dataset, columns=3, cell=128)
    assert sheet.mode == "RGB" and sheet.width == 3 * 140 + 12
    shown = sheet.tobytes()
    for item in dataset.items:
        row = Image.open(dataset.image_path(item)).resize((128, 128), Image.Resampling.LANCZOS).crop((0, 64, 128, 65)).tobytes()
        assert row in shown, item.file
    assert sheet_of(dataset, columns=3, cell=128, limit=3).height < sheet.height


def test_captions_are_wrapped_to_the_cell() -> None:
    lines = wrap_caption("one two three " * 20, 100, 14, 3)
    assert len(lines) == 3 and lines[-1].endswith("…")
    assert "".join(wrap_caption("青" * 30, 100, 14, 9)) == "青" * 30
    assert wrap_caption("short", 100, 14, 3) == ["short"]
    assert wrap_caption("", 100, 14, 3) == []
