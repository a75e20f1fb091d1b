"""A LoRA's card: from the metadata of any trainer, from files beside it, and without either."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import save_file

from tests.tools import hostile
from tests.unit.lorafile.helpers import lora_tensors, small_layers
from trainer.lorafile import TrainingFacts, build_metadata, card


def written(path: Path, metadata: dict[str, str] | None = None) -> Path:
    """A small kohya file of rank 4 and alpha 2."""
    save_file(lora_tensors(small_layers(), rank=4, alpha=2.0), path, metadata)
    return path


def plain_image(colour: str, size: int = 40) -> Image.Image:
    """An image of one colour, which JPEG nearly preserves."""
    return Image.new("RGB", (size, size), colour)


def decoded(url: str) -> Image.Image:
    """The image in a data URL, decoded with the standard library and Pillow."""
    head, _, data = url.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_card_of_our_own_file_shows_training_facts(tmp_path: Path) -> None:
    facts = TrainingFacts(
        name="retro", family="sd1", rank=4, alpha=2.0, base_name="base.safetensors", lr=1e-4, epochs=5, steps=1200, image_count=24,
        resolution=(512, 768), finished_at=1_770_000_000.0, trigger="myRetro", class_description="girl", optimizer_args={"eps": 1e-8},
        thumbnail=plain_image("red"), author="A. Painter", description="The nineties.", seed=7,
    )  # fmt: skip
    found = card(written(tmp_path / "retro.safetensors", build_metadata(facts)))
    assert (found.title, found.family, found.base) == ("retro", "Stable Diffusion 1.x", "base.safetensors")
    assert (found.rank, found.alpha, found.algorithm, found.precision) == (4, 2.0, "LoRA", "float16")
    assert found.layers == len(small_layers())
    assert found.trigger_words == ("myRetro girl",)
    wanted = {"steps": "1200", "epochs": "5", "images": "24", "resolution": "512 × 768", "lr": "0.0001", "seed": "7"}
    assert wanted.items() <= found.training.items()
    assert (found.training["optimizer"], found.training["date"]) == ("AdamW", "2026-02-02")
    assert (found.author, found.description, found.problem) == ("A. Painter", "The nineties.", "")
    red, green, blue = decoded(found.thumbnail).convert("RGB").getpixel((20, 20))  # type: ignore[misc]
    assert red > 200 > 60 > max(green, blue)


def test_card_without_metadata_describes_tensors(tmp_path: Path) -> None:
    path = written(tmp_path / "plain.safetensors")
    found = card(path)
    assert (found.title, found.rank, found.alpha, found.trigger_words, found.training) == ("plain", 4, 2.0, (), {})
    assert found.family == "Stable Diffusion 1.x"
    assert (found.thumbnail, found.problem, found.size) == ("", "", path.stat().st_size)


def test_common_tags_replace_missing_trigger_words(tmp_path: Path) -> None:
    frequency = {"10_chibi": {"chibi": 20, "1girl": 18, "smile": 12}}
    found = card(written(tmp_path / "a.safetensors", {"ss_tag_frequency": json.dumps(frequency)}))
    assert found.tags == (("chibi", 20), ("1girl", 18), ("smile", 12))
    assert found.trigger_words == ("chibi",)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".preview.png", ".webp"])
def test_image_beside_the_file_is_its_thumbnail(tmp_path: Path, ending: str) -> None:
    path = written(tmp_path / "some.name v1.safetensors")
    plain_image("blue", 900).save(tmp_path / f"some.name v1{ending}")
    image = decoded(card(path).thumbnail)
    assert max(image.size) <= 256
    assert image.convert("RGB").getpixel((9, 9))[2] > 200  # type: ignore[index]


def test_notes_of_other_programs_are_read(tmp_path: Path) -> None:
    path = written(tmp_path / "noted.safetensors")
    webui = {"activation text": "bbb, ccc", "sd version": "SD1", "preferred weight": 0.7, "description": "Mine."}
    (tmp_path / "noted.json").write_text(json.dumps(webui), encoding="utf-8")
    (tmp_path / "noted.civitai.info").write_text(json.dumps({"trainedWords": ["ddd"], "model": {"name": "A name"}}), encoding="utf-8")
    found = card(path)
    assert (found.trigger_words, found.strength, found.description, found.title) == (("bbb", "ccc"), 0.7, "Mine.", "A name")
    (tmp_path / "noted.json").unlink()
    assert card(path).trigger_words == ("ddd",)


def test_metadata_takes_precedence_over_notes(tmp_path: Path) -> None:
    path = written(tmp_path / "both.safetensors", {"modelspec.trigger_phrase": "stated"})
    (tmp_path / "both.json").write_text('{"activation text": "noted"}', encoding="utf-8")
    assert card(path).trigger_words == ("stated",)


def test_card_of_damaged_file_states_the_problem(tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"\xff" * 300)
    plain_image("blue").save(tmp_path / "broken.png")
    found = card(path)
    assert "broken.safetensors" in found.problem
    assert found.thumbnail
    assert found.rank is None


HOSTILE: list[dict[str, str]] = [
    {"modelspec.thumbnail": "data:image/png;base64,AAAA"},
    {"modelspec.thumbnail": "javascript:alert(1)"},
    {"modelspec.thumbnail": "data:image/svg+xml;base64," + base64.b64encode(b"<svg onload='x'/>").decode()},
    {"modelspec.title": "x" * 100_000, "modelspec.trigger_phrase": ",".join(["w" * 500] * 300)},
    {"ss_tag_frequency": "[" * 50_000, "ss_resolution": "9" * 10_000, "ss_training_finished_at": "1e400", "ss_learning_rate": "nan"},
    {"ss_tag_frequency": '{"a": {"b": "c"}}', "ss_dataset_dirs": "7", "modelspec.date": "yesterday", "ss_training_started_at": "-1"},
]


@pytest.mark.parametrize("metadata", HOSTILE)
def test_odd_metadata_gives_a_small_harmless_card(tmp_path: Path, metadata: dict[str, str]) -> None:
    found: dict[str, Any] = card(written(tmp_path / "odd.safetensors", metadata)).to_json()
    assert len(json.dumps(found, allow_nan=False)) < 20_000
    assert not found["thumbnail"]
    assert "javascript" not in json.dumps(found)


@pytest.mark.parametrize("metadata", hostile.lora_metadata().values(), ids=list(hostile.lora_metadata()))
def test_hostile_metadata_gives_a_small_harmless_card(tmp_path: Path, metadata: dict[str, str]) -> None:
    (tmp_path / "odd.preview.png").write_bytes(hostile.eps())
    found = card(written(tmp_path / "odd.safetensors", metadata))
    assert (found.thumbnail, found.problem) == ("", "")
    assert len(json.dumps(found.to_json(), allow_nan=False)) < 20_000


@pytest.mark.parametrize("content", [b"no picture", b"<svg onload='x'/>", b"GIF89a", b""])
@pytest.mark.parametrize("ending", [".png", ".json", ".civitai.info"])
def test_unreadable_files_beside_it_are_ignored(tmp_path: Path, ending: str, content: bytes) -> None:
    path = written(tmp_path / "odd.safetensors")
    (tmp_path / f"odd{ending}").write_bytes(content)
    found = card(path)
    assert (found.thumbnail, found.trigger_words, found.description) == ("", (), "")


@pytest.mark.parametrize("name", sorted(hostile.weights(Path())))
def test_card_of_hostile_weights_names_the_problem(tmp_path: Path, name: str) -> None:
    hostile.weights(tmp_path / "it ran")[name](tmp_path / name)
    if not (tmp_path / name).exists():  # a broken or circular link
        with pytest.raises(OSError):
            card(tmp_path / name)
        return
    found = json.dumps(card(tmp_path / name).to_json())
    assert json.loads(found)["problem"] and "Traceback" not in found
    assert len(found) < 20_000
    assert not (tmp_path / "it ran").exists()
