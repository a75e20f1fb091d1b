"""What a person changed by hand in the dataset's folder is never lost, whatever is prepared there next."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from tests.unit.dataset.drawings import drawing, folder_of
from tests.unit.dataset.helpers import SETTINGS, captions_by_source, changed
from trainer.core.errors import Cancelled
from trainer.core.files.writing import write_atomic
from trainer.dataset import BucketSettings, CaptionSettings, CleanSettings, Dataset, PrepareSettings, open_dataset, prepare_dataset

MINE = "mk01, my own words"


def caption_path(dataset: Dataset, source: str) -> Path:
    row = next(row for row in dataset.rows() if row["source"] == source)
    return dataset.path / f"{str(row['file']).removesuffix('.png')}.txt"


def kept(dataset: Dataset, kind: str = "captions") -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8").strip() for path in (dataset.path / ".prepare" / f"kept-{kind}").glob("*")}


@pytest.mark.parametrize(
    "change",
    [
        {"resolution": 72},
        {"crop": "none"},
        {"buckets": BucketSettings(step=8)},
        {"background": "#000000"},
        {"clean": CleanSettings(min_side=32)},
    ],
    ids=str,
)
def test_edited_caption_survives_settings_that_rename_the_image(tmp_path: Path, change: dict[str, object]) -> None:
    folder_of(tmp_path / "in", 3, (200, 160))
    first = prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS).dataset
    caption_path(first, "1.png").write_text(MINE, encoding="utf-8")
    second = prepare_dataset(tmp_path / "in", tmp_path / "out", changed(**change))
    assert second.dataset.items[1].file != first.items[1].file
    assert captions_by_source(second.dataset) == {"0.png": "mk01 girl", "1.png": MINE, "2.png": "mk01 girl"}
    assert len(list(second.dataset.path.glob("*.txt"))) == 3, "no caption of the old name is left"
    third = prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS)
    assert captions_by_source(third.dataset)["1.png"] == MINE and not kept(third.dataset)


def test_edited_caption_follows_a_renamed_and_a_retouched_source(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 4)
    first = prepare_dataset(source, tmp_path / "out", SETTINGS).dataset
    for name in ("1.png", "2.png"):
        caption_path(first, name).write_text(f"mk01, was {name}", encoding="utf-8")
    (source / "1.png").rename(source / "girl.png")
    ImageDraw.Draw(image := drawing(2)).rectangle((0, 0, 90, 90), fill=(255, 255, 255))
    image.save(source / "2.png")
    second = prepare_dataset(source, tmp_path / "out", SETTINGS)
    captions = captions_by_source(second.dataset)
    assert (captions["girl.png"], captions["2.png"]) == ("mk01, was 1.png", "mk01, was 2.png")
    assert any("1 caption edited by hand went to a changed image of the same name" in text for text in second.report.warnings)


def test_swapped_names_do_not_swap_captions(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 3)
    first = prepare_dataset(source, tmp_path / "out", SETTINGS).dataset
    caption_path(first, "0.png").write_text(MINE, encoding="utf-8")
    (source / "0.png").rename(source / "x.png")
    (source / "1.png").rename(source / "0.png")
    (source / "x.png").rename(source / "1.png")
    again = prepare_dataset(source, tmp_path / "out", SETTINGS).dataset
    assert captions_by_source(again) == {"0.png": "mk01 girl", "1.png": MINE, "2.png": "mk01 girl"}


def test_edited_caption_without_an_image_is_set_aside_and_reported(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 3)
    for words in ("first", "second"):
        dataset = prepare_dataset(source, tmp_path / "out", SETTINGS).dataset
        caption_path(dataset, "1.png").write_text(words, encoding="utf-8")
        (source / "1.png").unlink()
        result = prepare_dataset(source, tmp_path / "out", SETTINGS)
        folder_of(source, 1, first=1)
        assert len(list(result.dataset.path.glob("*.txt"))) == 2
        assert any("1 caption changed by hand" in text and "kept-captions" in text for text in result.report.warnings)
    assert sorted(kept(result.dataset).values()) == ["first", "second"], "nothing there is written over"


def test_other_sources_with_the_same_names_do_not_get_the_captions(tmp_path: Path) -> None:
    folder_of(tmp_path / "a", 3)
    folder_of(tmp_path / "b", 6, first=50)
    for number in range(3):
        (tmp_path / "b" / f"{50 + number}.png").rename(tmp_path / "b" / f"{number}.png")
    first = prepare_dataset(tmp_path / "a", tmp_path / "out", SETTINGS).dataset
    caption_path(first, "0.png").write_text(MINE, encoding="utf-8")
    second = prepare_dataset(tmp_path / "b", tmp_path / "out", SETTINGS, replace_other=True)
    assert set(captions_by_source(second.dataset).values()) == {"mk01 girl"}
    assert list(kept(second.dataset).values()) == [MINE]


def test_resaved_sources_keep_their_captions(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 3)
    first = prepare_dataset(source, tmp_path / "out", SETTINGS).dataset
    caption_path(first, "0.png").write_text(MINE, encoding="utf-8")
    for path in source.iterdir():
        Image.open(path).point(lambda value: min(255, value + 3)).save(path)
    assert captions_by_source(prepare_dataset(source, tmp_path / "out", SETTINGS).dataset)["0.png"] == MINE


def test_captions_of_a_stopped_run_are_not_edits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder_of(tmp_path / "in", 60)
    first = prepare_dataset(source, tmp_path / "out", changed(captions=CaptionSettings(suffix="A"))).dataset
    caption_path(first, "1.png").write_text(MINE, encoding="utf-8")
    written: list[object] = []

    def counting(path: Path, data: bytes | str) -> None:
        written.append(path)
        write_atomic(path, data)

    monkeypatch.setattr("trainer.dataset.preparation.captioning.write_atomic", counting)
    with pytest.raises(Cancelled):
        settings = changed(captions=CaptionSettings(suffix="B"))
        prepare_dataset(source, tmp_path / "out", settings, replace_other=True, should_stop=lambda: len(written) >= 10)
    monkeypatch.undo()
    assert any(path.read_text(encoding="utf-8") == "mk01 girl, B\n" for path in first.path.glob("*.txt"))
    last = prepare_dataset(source, tmp_path / "out", changed(captions=CaptionSettings(suffix="C")), replace_other=True)
    assert captions_by_source(last.dataset) == {f"{i}.png": MINE if i == 1 else "mk01 girl, C" for i in range(60)}
    assert last.report.captions_from == {"instance prompt": 59, "edited by hand": 1}


def masked_source(folder: Path) -> Path:
    folder.mkdir()
    for number in range(3):
        picture = drawing(number)
        picture.putalpha(drawing(number + 90).convert("L"))
        picture.save(folder / f"{number}.png")
    return folder


def paint(dataset: Dataset, index: int = 1) -> bytes:
    path = dataset.mask_path(dataset.items[index])
    assert path is not None
    Image.new("L", (64, 64), 77).save(path)
    return path.read_bytes()


def test_painted_mask_follows_its_image(tmp_path: Path) -> None:
    source, settings = masked_source(tmp_path / "in"), changed(alpha="mask")
    first = prepare_dataset(source, tmp_path / "out", settings).dataset
    painted = paint(first)
    first.image_path(first.items[1]).write_bytes(b"cut")  # made again: the mask must not be

    def mask(change: PrepareSettings) -> bytes:
        dataset = prepare_dataset(source, tmp_path / "out", change).dataset
        path = dataset.mask_path(dataset.items[1])
        assert path is not None and not kept(dataset, "masks")
        return path.read_bytes()

    assert mask(settings) == painted
    assert mask(changed(alpha="mask", clean=CleanSettings(min_side=32))) == painted, "the same pixels under another name"
    (source / "1.png").rename(source / "1b.png")
    assert mask(settings) == painted


def test_painted_mask_of_other_pixels_is_set_aside_and_reported(tmp_path: Path) -> None:
    source = masked_source(tmp_path / "in")
    painted = paint(prepare_dataset(source, tmp_path / "out", changed(alpha="mask")).dataset)
    result = prepare_dataset(source, tmp_path / "out", changed(alpha="mask", resolution=72))
    (aside,) = (result.dataset.path / ".prepare" / "kept-masks").iterdir()
    assert aside.read_bytes() == painted
    assert any("1 mask changed by hand" in text and "kept-masks" in text for text in result.report.warnings)
    assert len(list((result.dataset.path / "masks").iterdir())) == 3


def test_folder_of_an_earlier_version_keeps_its_edits(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 3)
    first = prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS).dataset
    caption_path(first, "1.png").write_text(MINE, encoding="utf-8")
    (first.path / ".prepare" / "captions.jsonl").unlink()  # which older versions did not write
    second = prepare_dataset(tmp_path / "in", tmp_path / "out", changed(captions=CaptionSettings(suffix="B"), resolution=72)).dataset
    assert captions_by_source(second) == {"0.png": "mk01 girl, B", "1.png": MINE, "2.png": "mk01 girl, B"}


def test_foreign_manifest_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 2)
    folder = prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS).dataset.path
    (tmp_path / "secret.txt").write_text("secret", encoding="utf-8")
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    rows[0]["file"] = "../../secret.png"
    (folder / "manifest.jsonl").write_text("not json\n" + "\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    shutil.rmtree(folder / ".prepare")
    dataset = prepare_dataset(tmp_path / "in", tmp_path / "out", SETTINGS).dataset
    assert "secret" not in captions_by_source(dataset).values()
    assert (tmp_path / "secret.txt").exists() and open_dataset(folder).hash == dataset.hash
