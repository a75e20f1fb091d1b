"""Partial files of killed runs in the cache: they are removed when the file that they were to become is written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from trainer.families import LatentSpace
from trainer.families.checkpoints.digests import cached_digest
from trainer.training.caching.cache import Cache

PARTIAL = ".partial-0123456789abcdef.safetensors.tmp"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="without locks, partial files are removed after a day")


def test_writing_a_cache_file_removes_what_a_killed_run_left_of_it(tmp_path: Path) -> None:
    cache = Cache(tmp_path, "base", LatentSpace(channels=4, downscale=8, scaling_factor=1.0))
    path = cache.prompt_path("a girl")
    path.parent.mkdir(parents=True)
    (path.parent / PARTIAL).write_bytes(b"half")
    cache.write_prompt("a girl", {"embeds": torch.zeros(77, 4)})
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_recording_a_digest_removes_what_a_killed_process_left_of_the_record(tmp_path: Path) -> None:
    model, cache = tmp_path / "model.safetensors", tmp_path / "cache"
    model.write_bytes(b"weights")
    cache.mkdir()
    (cache / PARTIAL).write_bytes(b"half")
    cached_digest(model, cache, full=False)
    assert [each.name for each in cache.iterdir()] == ["checkpoint-hashes.json"]
