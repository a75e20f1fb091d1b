"""Written files match kohya's in keys and hashes, and unusable ones are refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save

from tests.unit.lorafile.helpers import DTYPES, key_table, lora_tensors, sd15_layers, small_layers
from trainer.core.errors import UserError
from trainer.lorafile import TrainingFacts, build_metadata, inspect_lora, save_lora, verify_lora
from trainer.lorafile.writing.metadata import most_frequent


def facts(**changes: object) -> TrainingFacts:
    values: dict[str, object] = {
        "name": "my_style", "family": "sd1", "rank": 4, "alpha": 4.0, "base_name": "anime.safetensors", "base_hash": "ab" * 32,
        "base_legacy_hash": "deadbeef", "lr": 1e-4, "optimizer_args": {"weight_decay": 0.01}, "epochs": 5, "steps": 30, "batch_size": 2,
        "accumulation": 2, "seed": 7, "precision": "bf16", "resolution": 512, "buckets": {"512x512": 10, "448x576": 2},
        "dataset_name": "ohwx_girl", "tag_frequency": {"ohwx_girl": {"ohwx": 12, "smile": 3}}, "image_count": 12, "repeats": 3,
        "trigger": "ohwx", "class_description": "girl", "started_at": 1.7e9, "finished_at": 1.7e9 + 60, "clip_skip": 2,
        "thumbnail": Image.new("RGB", (640, 480), (200, 30, 60)), "tags": ("anime", "style"),
    }  # fmt: skip
    return TrainingFacts(**{**values, **changes})  # type: ignore[arg-type]


def test_keys_types_and_shapes_match_real_kohya_file(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_lora(path, lora_tensors(sd15_layers(), rank=32, alpha=16), build_metadata(facts(rank=32, alpha=16.0)))
    real = {key: value for key, value in key_table("sd15").items() if key.startswith("lora_unet")}
    with safe_open(path, "pt") as file:
        ours = {key: (DTYPES[(t := file.get_tensor(key)).dtype], list(t.shape)) for key in file.keys()}  # noqa: SIM118
    assert ours == real
    assert len(ours) == 3 * 192


def test_hashes_match_kohya(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    tensors, metadata = lora_tensors(sd15_layers(), rank=8), build_metadata(facts())
    save_lora(path, tensors, metadata)
    # kohya serialises in memory with only the ss_ keys and hashes everything after the header
    data = save(tensors, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    body = data[8 + int.from_bytes(data[:8], "little") :]
    written = inspect_lora(path).metadata
    assert written["sshs_model_hash"] == hashlib.sha256(body).hexdigest()
    assert written["sshs_legacy_hash"] == hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]
    assert written["modelspec.hash_sha256"] == "0x" + hashlib.sha256(body).hexdigest()


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_lora(tmp_path / f"{name}.safetensors", lora_tensors(small_layers()), build_metadata(facts()))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_metadata_is_text_with_json_tables() -> None:
    metadata = build_metadata(facts())
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in metadata.items())
    assert json.loads(metadata["ss_tag_frequency"]) == {"ohwx_girl": {"ohwx": 12, "smile": 3}}
    assert json.loads(metadata["ss_dataset_dirs"]) == {"ohwx_girl": {"n_repeats": 3, "img_count": 12}}
    buckets = json.loads(metadata["ss_bucket_info"])["buckets"]
    assert {tuple(bucket["resolution"]): bucket["count"] for bucket in buckets.values()} == {(512, 512): 10, (448, 576): 2}
    assert json.loads(metadata["ss_datasets"])[0]["subsets"][0]["img_count"] == 12
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["ss_base_model_version"] == "sd_v1"
    assert metadata["ss_v2"] == "False"
    assert metadata["ss_num_train_images"] == "36"
    assert metadata["ss_num_batches_per_epoch"] == "18"
    assert metadata["ss_total_batch_size"] == "4"
    assert (metadata["ss_epoch"], metadata["ss_num_epochs"]) == ("5", "5")
    mixed = build_metadata(facts(images_seen=21, planned_epochs=8))  # images with individual repeats, in the middle of a run
    assert (mixed["ss_num_train_images"], mixed["ss_num_batches_per_epoch"]) == ("21", "11")
    assert (mixed["ss_epoch"], mixed["ss_num_epochs"]) == ("5", "8")
    assert metadata["ss_sd_model_hash"] == "deadbeef"
    assert metadata["ss_min_snr_gamma"] == "None"
    assert metadata["modelspec.trigger_phrase"] == "ohwx girl"
    assert build_metadata(facts(family="sdxl"))["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert build_metadata(facts(family="sdxl"))["ss_base_model_version"].startswith("sdxl_")


def test_written_file_is_described_by_info(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_lora(path, lora_tensors(small_layers(), rank=4, alpha=2.0), build_metadata(facts()))
    info = inspect_lora(path)
    assert (info.family, info.format, info.algorithm, info.rank, info.alpha) == ("sd1", "kohya", "lora", 4, 2.0)
    assert info.usable and info.problems == ()
    assert info.targets == {"unet": 12}
    assert info.trigger_words == ("ohwx girl",)
    assert info.base == "anime.safetensors"
    assert info.title == "my_style"
    assert info.thumbnail is not None and info.thumbnail.size == (256, 192)
    red, green, blue = info.thumbnail.getpixel((128, 96))  # type: ignore[misc]
    assert abs(red - 200) < 4 and abs(green - 30) < 4 and abs(blue - 60) < 4


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("nan", "not finite"),
        ("zero", "zero"),
        ("no alpha", "no alpha"),
        ("no down", "unknown algorithm"),
        ("rank", "do not fit"),
        ("stray", "malformed"),
        ("empty", "no weights"),
    ],
)
def test_unusable_file_is_refused_and_old_one_stays(tmp_path: Path, damage: str, reason: str) -> None:
    tensors = lora_tensors(small_layers())
    first = "lora_unet_down_blocks_0_attentions_0_proj_in"
    if damage == "nan":
        tensors[f"{first}.lora_up.weight"][0, 0] = float("nan")
    elif damage == "zero":
        tensors = {key: torch.zeros_like(t) if "lora_up" in key else t for key, t in tensors.items()}
    elif damage == "no alpha":
        del tensors[f"{first}.alpha"]
    elif damage == "no down":
        del tensors[f"{first}.lora_down.weight"]
    elif damage == "rank":
        tensors[f"{first}.lora_up.weight"] = tensors[f"{first}.lora_up.weight"][:, :2]
    elif damage == "stray":
        tensors["lora_unet_nonsense.lora_up.weight"] = torch.ones(2, 2)
    else:
        tensors = {}
    path = tmp_path / "lora.safetensors"
    path.write_bytes(b"what was here before")
    with pytest.raises(UserError, match=reason) as caught:
        save_lora(path, tensors, {})
    assert "lora.safetensors" in caught.value.message
    assert path.read_bytes() == b"what was here before"
    assert list(tmp_path.iterdir()) == [path]


def test_written_file_verifies(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_lora(path, lora_tensors(small_layers()), {})
    verify_lora(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 10)
    with pytest.raises(UserError, match="incomplete"):
        verify_lora(path)


def test_most_frequent_tags_are_kept_up_to_the_limit() -> None:
    frequency = {"a": {"rare": 1, "often": 9, "x" * 500: 8}, "b": {"some": 5, "once": 1}}
    assert most_frequent(frequency, limit=40) == ({"a": {"rare": 1, "often": 9}, "b": {"some": 5}}, 2)
    assert most_frequent(frequency) == (frequency, 0)
    assert list(most_frequent(frequency)[0]["a"]) == ["rare", "often", "x" * 500], "the order of tags is part of the file"
