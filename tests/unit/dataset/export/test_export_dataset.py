"""What is exported is read by kohya's and by Hugging Face's own readers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.unit.dataset.drawings import drawing, folder_of
from trainer.core.errors import UserError
from trainer.dataset import BucketSettings, Dataset, PrepareSettings, TrainingHints, export_dataset, prepare_dataset

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")  # what kohya's glob_images looks for


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Two wide pictures with ten repeats, an opaque and a half transparent one, two for regularisation; buckets."""
    folder_of(tmp_path / "in" / "10_mk01 girl", 2, (300, 200))
    (tmp_path / "in" / "10_mk01 girl" / "0.txt").write_text("smile, 青い髪", encoding="utf-8")
    drawing(5).save(tmp_path / "in" / "opaque.png")
    faded = drawing(6).convert("RGBA")
    faded.putalpha(Image.linear_gradient("L").resize(faded.size))
    faded.save(tmp_path / "in" / "faded.png")
    folder_of(tmp_path / "reg", 2, first=20)
    settings = PrepareSettings(
        trigger="mk01", class_description="girl", resolution=256, buckets=BucketSettings(), alpha="mask", regularisation_weight=0.5,
        training=TrainingHints(shuffle_caption=True, keep_tokens=2, caption_dropout=0.1, tag_dropout=0.2, flip=True),
    )  # fmt: skip
    return prepare_dataset(tmp_path / "in", tmp_path / "out", settings, regularisation=tmp_path / "reg").dataset


def test_kohya_export_has_kohyas_structure(dataset: Dataset) -> None:
    folder = export_dataset(dataset, "kohya")
    config = tomllib.loads((folder / "dataset.toml").read_text(encoding="utf-8"))
    (part,) = config["datasets"]
    assert {k: v for k, v in part.items() if k != "subsets"} == {
        "resolution": 256, "enable_bucket": True, "min_bucket_reso": 128, "max_bucket_reso": 512, "bucket_reso_steps": 64,
        "bucket_no_upscale": False,
    }  # fmt: skip
    by_name = {Path(subset["image_dir"]).name: subset for subset in part["subsets"]}
    assert sorted(by_name) == ["10_mk01 girl", "1_girl", "1_mk01 girl"]
    assert by_name["10_mk01 girl"]["num_repeats"] == 10 and by_name["1_girl"]["is_reg"] and by_name["1_mk01 girl"]["alpha_mask"]
    for subset in part["subsets"]:
        assert (subset["shuffle_caption"], subset["keep_tokens"], subset["flip_aug"]) == (True, 2, True)
        assert (subset["caption_dropout_rate"], subset["caption_tag_dropout_rate"]) == (0.1, 0.2)
        place = Path(subset["image_dir"])
        pictures = [path for path in place.iterdir() if path.suffix in IMAGES]
        assert pictures
        for picture in pictures:
            assert picture.with_suffix(subset["caption_extension"]).read_text(encoding="utf-8").strip()
    captions = sorted(path.read_text(encoding="utf-8").strip() for path in (folder / "img").rglob("*.txt"))
    assert captions == ["mk01 girl", "mk01 girl", "mk01 girl", "mk01, smile, 青い髪"]
    assert "--prior_loss_weight 0.5" in (folder / "dataset.toml").read_text(encoding="utf-8")


def test_kohyas_own_reader_accepts_the_export(dataset: Dataset) -> None:
    if not os.environ.get("KOHYA_PATH"):
        warnings.warn("KOHYA_PATH is not set: kohya's own reader was NOT tried, only the export's structure", stacklevel=1)
        pytest.skip("set KOHYA_PATH to a checkout of kohya-ss/sd-scripts to try its own reader")
    folder = export_dataset(dataset, "kohya")
    command = [sys.executable, str(Path(__file__).with_name("read_with_kohya.py")), str(folder / "dataset.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    expected = {Path(item.file).name: item for item in dataset.items}
    assert {row["file"] for row in seen["items"]} == set(expected)
    for row in seen["items"]:
        item = expected[row["file"]]
        assert row["caption"] == item.caption and row["is_reg"] == item.is_regularisation
        assert row["bucket"] == row["resized"] == [item.width, item.height], "kohya neither resizes nor crops again"
        if not item.is_regularisation:
            assert row["repeats"] == item.repeats
    assert {tuple(batch["shape"]) for batch in seen["batches"]} == {(1, 3, 192, 320), (1, 3, 256, 256)}
    masks = [batch["mask"] for batch in seen["batches"] if batch["mask"] is not None]
    assert any(abs(mask - 0.5) < 0.01 for mask in masks), "the gradient arrived as a mask"


def test_hugging_face_reads_the_imagefolder(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = export_dataset(dataset, "imagefolder")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert {"image", "text"} <= set(loaded.column_names)
    expected = [item for item in dataset.items if not item.is_regularisation]
    assert sorted(row["text"] for row in loaded) == sorted(item.caption for item in expected)
    mine = sorted(np.asarray(Image.open(dataset.image_path(item))).tobytes() for item in expected)
    assert sorted(np.asarray(row["image"].convert("RGB")).tobytes() for row in loaded) == mine


def test_imagefolder_structure(dataset: Dataset) -> None:
    folder = export_dataset(dataset, "imagefolder")
    rows = [json.loads(line) for line in (folder / "train" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["file_name"] for row in rows} == {path.name for path in (folder / "train").glob("*.png")}
    assert sorted(row["repeats"] for row in rows) == [1, 1, 10, 10]


def test_export_replaces_only_itself(dataset: Dataset, tmp_path: Path) -> None:
    target = tmp_path / "target"
    export_dataset(dataset, "imagefolder", target)
    (target / "train" / "old.png").write_bytes(b"x")
    export_dataset(dataset, "imagefolder", target)
    assert not (target / "train" / "old.png").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.doc").write_bytes(b"x")
    with pytest.raises(UserError, match="is not an earlier export"):
        export_dataset(dataset, "kohya", tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.doc").exists()


def test_export_that_was_killed_while_it_replaced_another_can_be_repeated(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = export_dataset(dataset, "kohya")

    def killed(path: Path) -> None:
        next(each for each in sorted(path.rglob("*")) if each.is_file()).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        export_dataset(dataset, "imagefolder", folder)
    export_dataset(dataset, "imagefolder", folder)
    assert [path.name for path in sorted(folder.iterdir())] == [".animelora-export", "train"]


def test_export_prepared_again_is_the_same_dataset(dataset: Dataset, tmp_path: Path) -> None:
    """What other tools get is complete: preparing the kohya folder gives the same pictures and captions."""
    folder = export_dataset(dataset, "kohya")
    settings = PrepareSettings.model_validate(dataset.settings)
    again = prepare_dataset(folder, tmp_path / "again", settings).dataset

    def key(d: Dataset) -> list[tuple[str, int, bool]]:
        return sorted((item.caption, item.repeats, item.is_regularisation) for item in d.items)

    assert key(again) == key(dataset)
