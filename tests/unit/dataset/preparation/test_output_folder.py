"""Every preparation has a folder of its own, and finds it again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.unit.dataset.drawings import drawing, folder_of
from tests.unit.dataset.helpers import SETTINGS, changed
from trainer.cli import main
from trainer.config.sections.dataset import DatasetSection, MoreDataset
from trainer.core.errors import UserError
from trainer.dataset import CaptionSettings, Dataset, SourceImage, export_dataset, open_dataset, prepare_dataset
from trainer.dataset.loading.open import open_datasets
from trainer.dataset.preparation.earlier_runs.identity import path_id


def sources(dataset: Dataset) -> set[str]:
    return {str(row["source_sha256"]) for row in dataset.rows()}


def test_two_sources_with_one_name_give_two_datasets(tmp_path: Path) -> None:
    folder_of(tmp_path / "a", 4)
    folder_of(tmp_path / "b", 5, first=10)
    first = prepare_dataset(tmp_path / "a", tmp_path / "out", SETTINGS).dataset
    second = prepare_dataset(tmp_path / "b", tmp_path / "out", SETTINGS)
    assert first.path.name == "mk01_girl" and second.dataset.path.name.startswith("mk01_girl-")
    assert [len(open_dataset(each.path).items) for each in (first, second.dataset)] == [4, 5]
    assert open_dataset(first.path).hash == first.hash
    assert any("mk01_girl holds another dataset" in text and path_id(tmp_path / "a") in text for text in second.report.warnings)
    for source, dataset in (("a", first), ("b", second.dataset)):
        again = prepare_dataset(tmp_path / source, tmp_path / "out", SETTINGS)
        assert (again.dataset.path, again.dataset.hash, again.reused) == (dataset.path, dataset.hash, len(dataset.items))
        assert not any("another dataset" in text for text in again.report.warnings)


@pytest.mark.parametrize("change", [{"resolution": 128}, {"repeats": 3}, {"captions": CaptionSettings(suffix="x")}], ids=str)
def test_other_settings_give_a_new_dataset_with_images_and_hand_edits_of_the_first(tmp_path: Path, change: dict[str, object]) -> None:
    source = folder_of(tmp_path / "in", 3)
    first = prepare_dataset(source, tmp_path / "out", SETTINGS).dataset
    (first.path / first.items[1].file).with_suffix(".txt").write_text("mk01, mine", encoding="utf-8")
    second = prepare_dataset(source, tmp_path / "out", changed(**change))
    assert second.dataset.path != first.path
    assert second.dataset.items[1].caption == "mk01, mine"
    assert second.reused == (0 if "resolution" in change else 3)
    assert any("hand-edited captions of mk01_girl" in text for text in second.report.warnings)
    assert [item.width for item in open_dataset(first.path).items] == [64] * 3
    assert prepare_dataset(source, tmp_path / "out", SETTINGS).dataset.path == first.path
    assert prepare_dataset(source, tmp_path / "out", changed(**change)).dataset.path == second.dataset.path
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_trigger_words_with_equal_folder_names_give_two_datasets(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 2)
    made = {word: prepare_dataset(source, tmp_path / "out", changed(trigger=word)).dataset for word in ("q?x", "q*x")}
    assert len({dataset.path for dataset in made.values()}) == 2
    for word, dataset in made.items():
        assert [item.caption for item in open_dataset(dataset.path).items] == [f"{word} girl"] * 2


def test_batches_differ_by_image_and_by_caption(tmp_path: Path) -> None:
    images = [SourceImage(drawing(seed), f"image_{seed}", "a cat") for seed in range(3)]
    batches = [images, images[:2], [*images[:2], SourceImage(drawing(2), "image_2", "a dog")], images]
    paths = [prepare_dataset(each, tmp_path / "out", SETTINGS).dataset.path for each in batches]
    assert len(set(paths)) == 3 and paths[3] == paths[0]


def test_regularisation_images_are_part_of_the_identity(tmp_path: Path) -> None:
    source, extra = folder_of(tmp_path / "in", 2), folder_of(tmp_path / "reg", 1, first=20)
    plain = prepare_dataset(source, tmp_path / "out", SETTINGS).dataset
    both = prepare_dataset(source, tmp_path / "out", SETTINGS, regularisation=extra).dataset
    assert both.path != plain.path and len(both.items) == 3 and len(open_dataset(plain.path).items) == 2


def as_an_earlier_version_left_it(dataset: Dataset) -> None:
    (dataset.path / ".prepare" / "preparation.json").unlink()


def test_dataset_of_an_earlier_version_is_found_by_its_images_and_settings(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "a", 4)
    folder_of(tmp_path / "b", 4, first=10)
    for number in range(4):  # the same names as in the first folder
        (tmp_path / "b" / f"{10 + number}.png").rename(tmp_path / "b" / f"{number}.png")
    old = prepare_dataset(source, tmp_path / "out", SETTINGS).dataset
    (old.path / old.items[1].file).with_suffix(".txt").write_text("mk01, mine", encoding="utf-8")
    as_an_earlier_version_left_it(old)
    folder_of(source, 1, first=7)
    other = prepare_dataset(tmp_path / "b", tmp_path / "out", SETTINGS).dataset
    assert other.path != old.path and not sources(other) & sources(old)
    larger = prepare_dataset(source, tmp_path / "out", changed(resolution=128)).dataset
    assert larger.path not in (old.path, other.path) and larger.items[1].caption == "mk01, mine"
    again = prepare_dataset(source, tmp_path / "out", SETTINGS)
    assert again.dataset.path == old.path and (again.kept, again.reused) == (5, 4)
    assert again.dataset.items[1].caption == "mk01, mine"


def test_moved_source_finds_its_dataset_and_a_copy_does_not_take_it(tmp_path: Path) -> None:
    folder_of(tmp_path / "a", 3)
    first = prepare_dataset(tmp_path / "a", tmp_path / "out", SETTINGS).dataset
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    assert prepare_dataset(tmp_path / "copy", tmp_path / "out", SETTINGS).dataset.path != first.path
    (tmp_path / "a").rename(tmp_path / "moved")
    moved = prepare_dataset(tmp_path / "moved", tmp_path / "out", SETTINGS)
    assert (moved.dataset.path, moved.reused) == (first.path, 3)


def test_archive_is_a_source_and_leaves_no_files(tmp_path: Path) -> None:
    folder_of(tmp_path / "a", 2)
    shutil.make_archive(str(tmp_path / "a"), "zip", tmp_path / "a")
    names = {prepare_dataset(tmp_path / source, tmp_path / "out", SETTINGS).dataset.path.name for source in ("a", "a.zip", "a.zip")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names and len(names) == 2


def test_failed_preparation_does_not_keep_the_name(tmp_path: Path) -> None:
    folder_of(tmp_path / "small", 2, (20, 20))
    with pytest.raises(UserError, match="too small"):
        prepare_dataset(tmp_path / "small", tmp_path / "out", SETTINGS)
    assert prepare_dataset(folder_of(tmp_path / "in", 2), tmp_path / "out", SETTINGS).dataset.path.name == "mk01_girl"


def test_exports_of_two_datasets_with_one_name_are_separate(tmp_path: Path) -> None:
    made = [prepare_dataset(folder_of(tmp_path / f"{n}", 2, first=n), tmp_path / "out", SETTINGS).dataset for n in (0, 10)]
    assert len({export_dataset(dataset, "imagefolder") for dataset in made}) == 2
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == set()


def test_command_line_replaces_another_dataset_only_with_its_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = []
    for number, extra in enumerate(([], [], ["--replace-other"])):
        source = folder_of(tmp_path / f"{number}", number + 1, first=10 * number)
        assert main(["prepare", str(source), "--out", str(tmp_path / "out"), "--trigger", "mk01", "--json", *extra]) == 0
        places.append(Path(json.loads(capsys.readouterr().out)["path"]))
    assert places[0] == places[2] == tmp_path / "out" / "mk01" and places[1] != places[0]
    assert [len(open_dataset(place).items) for place in places[:2]] == [3, 2]


def test_training_refuses_a_dataset_with_another_hash(tmp_path: Path) -> None:
    style = prepare_dataset(folder_of(tmp_path / "a", 2), tmp_path / "style", SETTINGS).dataset
    hero = prepare_dataset(folder_of(tmp_path / "b", 2, first=10), tmp_path / "hero", SETTINGS).dataset
    more = (MoreDataset(path=str(hero.path), hash=hero.hash),)
    section = DatasetSection(path=str(style.path), hash=style.hash, more=more)
    assert len(open_datasets(section).items) == 4
    prepare_dataset(folder_of(tmp_path / "c", 3, first=20), tmp_path / "hero", SETTINGS, replace_other=True)
    with pytest.raises(UserError) as caught:
        open_datasets(section)
    assert str(hero.path) in caught.value.message and hero.hash[:16] in caught.value.message
    assert "Dataset Prep again" in caught.value.hint


@pytest.mark.parametrize("what", ["missing", "empty", "regularisation", "useless"])
def test_source_without_images_leaves_no_folder(tmp_path: Path, what: str) -> None:
    source = folder_of(tmp_path / "in", 0 if what == "empty" else 1)
    if what == "useless":
        Image.new("RGB", (90, 90)).save(source / "0.png")
    with pytest.raises(UserError):
        prepare_dataset(
            tmp_path / "nowhere" if what == "missing" else source, tmp_path / "out", SETTINGS,
            regularisation=tmp_path / "nowhere" if what == "regularisation" else None,
        )  # fmt: skip
    left = [path for path in (tmp_path / "out").rglob("*") if path.is_dir()] if (tmp_path / "out").exists() else []
    assert left == []
