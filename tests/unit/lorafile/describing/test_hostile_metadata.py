"""Metadata of any kind and size is described quickly, or left out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from tests.unit.lorafile.helpers import lora_tensors, small_layers
from trainer.lorafile import card, inspect_lora


def test_odd_metadata_does_not_break_info(tmp_path: Path) -> None:
    metadata = {
        "ss_tag_frequency": "[not json", "ss_dataset_dirs": json.dumps([1]), "modelspec.thumbnail": "data:image/png;base64,AAAA",
        "modelspec.trigger_phrase": " , ", "animelora.folded_alpha": '{"all": 3}', "lora_adapter_metadata": "nonsense", "x": "\u0000\ud7ff",
    }  # fmt: skip
    save_file(lora_tensors(small_layers()), tmp_path / "x.safetensors", metadata)
    info = inspect_lora(tmp_path / "x.safetensors")
    assert info.usable and info.thumbnail is None and info.trigger_words == ()
    json.dumps(info.to_json())


@pytest.mark.parametrize("digits", [400, 5000])
def test_counts_with_hundreds_of_digits_are_ignored(tmp_path: Path, digits: int) -> None:
    huge = "1" * digits
    for frequency, folders in ((f'{{"a": {{"ohwx": {huge}}}}}', "{}"), ('{"a": {"ohwx": 3}}', f'{{"a": {{"img_count": {huge}}}}}')):
        path = tmp_path / "x.safetensors"
        save_file(lora_tensors(small_layers()), path, {"ss_tag_frequency": frequency, "ss_dataset_dirs": folders})
        assert inspect_lora(path).trigger_words == (("ohwx",) if "3" in frequency else ())
        json.dumps(card(path).to_json())


def test_metadata_tables_are_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading takes time in proportion to the size of the tables, not to their size times the number of folders."""
    names = [f"1_folder {number}" for number in range(2000)]
    metadata = {
        "ss_tag_frequency": json.dumps({name: {"ohwx": 2} for name in names}),
        "ss_dataset_dirs": json.dumps({name: {"n_repeats": 1, "img_count": 2} for name in names}),
    }
    save_file(lora_tensors(small_layers()), tmp_path / "x.safetensors", metadata)
    parsed: list[int] = []

    def counting(text: Any, **options: Any) -> Any:
        parsed.append(len(text))
        return loads(text, **options)

    loads = json.loads
    monkeypatch.setattr(json, "loads", counting)
    found = card(tmp_path / "x.safetensors")
    assert found.trigger_words == ("ohwx",) and found.tags == (("ohwx", 4000),)
    assert sum(parsed) < 3 * sum(map(len, metadata.values()))


def test_oversized_metadata_table_is_not_read(tmp_path: Path) -> None:
    metadata = {"ss_tag_frequency": json.dumps({"a": {"x" * 9_000_000: 1}})}
    save_file(lora_tensors(small_layers()), tmp_path / "x.safetensors", metadata)
    info = inspect_lora(tmp_path / "x.safetensors")
    assert info.usable and info.trigger_words == ()
    assert "ss_tag_frequency is 9 MB and was not read" in info.notes


@pytest.mark.skipif(os.name == "nt", reason="NOT CHECKED: pipes are POSIX")
def test_pipe_beside_a_lora_does_not_block_its_card(tmp_path: Path) -> None:
    save_file(lora_tensors(small_layers()), tmp_path / "x.safetensors")
    for ending in (".json", ".civitai.info", ".preview.png"):
        os.mkfifo(tmp_path / f"x{ending}")
    found = card(tmp_path / "x.safetensors")
    assert (found.problem, found.thumbnail, found.description) == ("", "", "")


def test_oversized_notes_are_not_read(tmp_path: Path) -> None:
    save_file(lora_tensors(small_layers()), tmp_path / "x.safetensors")
    (tmp_path / "x.json").write_text(json.dumps({"description": "d" * (1 << 20)}), encoding="utf-8")
    assert card(tmp_path / "x.safetensors").description == ""
