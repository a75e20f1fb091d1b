"""PyTorch files with named tensors are read, and a file is closed once it is read."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.lorafile.helpers import lora_tensors, small_layers
from tests.unit.lorafile.reading.files import attention_pairs, keys_in, listed, written
from trainer.lorafile import read_lora


def test_pt_with_named_tensors(tmp_path: Path) -> None:
    tensors = lora_tensors(small_layers())
    torch.save({"state_dict": tensors}, tmp_path / "x.pt")
    assert len(read_lora(tmp_path / "x.pt").modules) == len(small_layers())


@pytest.mark.skipif(
    sys.platform != "win32" and not Path("/proc/self/maps").exists(), reason="the system does not show which files a process has mapped"
)
@pytest.mark.parametrize("kind", ["kohya", "peft", "embedding", "cloneofsimo"])
def test_file_is_not_mapped_after_reading(tmp_path: Path, kind: str) -> None:
    """Windows refuses to replace a file that a process has mapped, and tensors of a mapped file keep it mapped."""

    def mapped(path: Path) -> bool:
        if os.name != "nt":
            return str(path) in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
        other = path.with_suffix(".copy")
        other.write_bytes(path.read_bytes())
        try:
            os.replace(other, path)
        except PermissionError:
            return True
        return False

    metadata = None
    if kind == "cloneofsimo":
        metadata = {"unet": '["CrossAttention", "Attention", "GEGLU"]'}
        tensors = {f"unet:{i // 2}:{'down' if i % 2 else 'up'}": tensor for i, tensor in enumerate(listed("middle")[1])}
    elif kind == "peft":
        tensors = keys_in("peft", attention_pairs(small_layers()))
    else:
        tensors = lora_tensors(small_layers())
        tensors |= {"bundle_emb.ohwx.clip_l": torch.ones(2, 768)} if kind == "embedding" else {}
    path = written(tmp_path / "x.safetensors", tensors, metadata)
    held = load_file(path)
    assert held and mapped(path), "safetensors no longer maps files, so this test is void"
    del held
    assert not mapped(path)
    weights = read_lora(path)
    assert weights.modules and not mapped(path)
