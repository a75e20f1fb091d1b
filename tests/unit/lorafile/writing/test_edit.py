"""Edited metadata leaves the tensors and other entries of a file unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.unit.lorafile.factors import lora_file
from trainer.core.errors import UserError
from trainer.lorafile import (
    edit_metadata,
    inspect_lora,
)  # fmt: skip


def test_editing_metadata_keeps_tensors_and_other_entries(tmp_path: Path) -> None:
    source = lora_file(tmp_path / "a.safetensors")
    Image.new("RGB", (700, 500), (10, 200, 90)).save(tmp_path / "thumb.png")
    changes = {"title": "Neuer Titel", "trigger": "ohwx, girl", "custom": "", "thumbnail": str(tmp_path / "thumb.png"), "my.key": "v"}
    edit_metadata(source, tmp_path / "b.safetensors", changes)
    info = inspect_lora(tmp_path / "b.safetensors")
    assert info.title == "Neuer Titel" and info.trigger_words == ("ohwx", "girl")
    assert info.thumbnail is not None and max(info.thumbnail.size) == 256
    assert info.metadata["ss_output_name"] == "style" and info.metadata["my.key"] == "v" and "custom" not in info.metadata
    before, after = source.read_bytes(), (tmp_path / "b.safetensors").read_bytes()
    assert before[8 + int.from_bytes(before[:8], "little") :] == after[8 + int.from_bytes(after[:8], "little") :]
    edit_metadata(source, source, {"author": "me"})
    assert inspect_lora(source).metadata["modelspec.author"] == "me"
    with pytest.raises(UserError, match="does not exist"):
        edit_metadata(source, source, {"thumbnail": str(tmp_path / "none.png")})
    (tmp_path / "bad.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        edit_metadata(source, source, {"thumbnail": str(tmp_path / "bad.png")})
