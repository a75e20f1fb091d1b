"""Pipes in the folders of models: libraries that open files themselves would wait for them forever."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainer.core.errors import UserError
from trainer.core.messages import Setting
from trainer.families import is_base_model
from trainer.families.checkpoints.diffusers_folder import read_json
from trainer.families.checkpoints.digests import cached_digest
from trainer.families.checkpoints.separate_parts import PartKind, best_part
from trainer.families.checkpoints.weights_file import WeightsFile

pytestmark = pytest.mark.skipif(os.name == "nt", reason="NOT CHECKED: pipes are POSIX")


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def test_pipe_among_models_is_no_base_model(tmp_path: Path) -> None:
    assert not is_base_model(pipe(tmp_path / "a.safetensors"))


def test_pipe_among_text_encoders_is_passed_over(tmp_path: Path) -> None:
    kind = PartKind("text encoder", Setting("base.text_encoder"), (), lambda shapes: True, "")
    assert best_part([pipe(tmp_path / "a.safetensors")], kind) is None


def test_pipe_in_place_of_a_model_is_an_error(tmp_path: Path) -> None:
    weights = WeightsFile(pipe(tmp_path / "a.safetensors"))
    with pytest.raises(UserError, match="a device, a pipe or a folder"):
        _ = weights.shapes
    with pytest.raises(OSError, match="a device, a pipe or a folder"):
        _ = weights.metadata
    with pytest.raises(UserError, match="a device, a pipe or a folder"):
        read_json(pipe(tmp_path / "config.json"))


def test_pipe_in_place_of_the_record_of_digests_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"weights")
    record = pipe(tmp_path / "checkpoint-hashes.json")
    digest = cached_digest(tmp_path / "model", tmp_path, full=False)
    assert record.is_file() and cached_digest(tmp_path / "model", tmp_path, full=False) == digest
