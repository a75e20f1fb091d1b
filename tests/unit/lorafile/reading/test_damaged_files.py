"""Files that are no safetensors file, or a damaged one, cause only readable errors."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from tests.unit.lorafile.helpers import raw_safetensors
from trainer.core.errors import UserError
from trainer.lorafile import inspect_lora, read_lora

PAIR = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "data", "length", "reason"),
    [
        ({}, b"", 1 << 40, "claims"),
        ({}, b"", 99_999_999, "claims"),
        (b"not json", b"", None, "not JSON"),
        (b"\xff\xfe{}", b"", None, "not JSON"),
        (b"[" * 20000, b"", None, "not JSON"),
        ([1, 2], b"", None, "not a JSON object"),
        ({"__metadata__": {"a": 1}}, b"", None, "not text"),
        ({"a": 5}, b"", None, "not an object"),
        ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, b"\0" * 12, None, "overlaps"),
        ({"a": entry([2], 0, 8), "b": entry([2], 16, 24)}, b"\0" * 24, None, "hole"),
        ({"a": entry([3], 0, 8)}, b"\0" * 8, None, "does not match"),
        ({"a": entry([2], 0, 8)}, b"\0" * 4, None, "incomplete"),
        ({"a": entry([-1], 0, 8)}, b"\0" * 8, None, "invalid"),
        ({"a": entry([2], 8, 0)}, b"\0" * 8, None, "invalid"),
        ({"a": entry([1 << 61, 8], 0, 8)}, b"\0" * 8, None, "does not match"),
        ({"a": entry([2], 0, 8, "F99")}, b"\0" * 8, None, "unknown number type"),
        (
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            b"\0" * 4,
            None,
            "twice",
        ),
    ],
)
def test_invalid_header_is_refused(tmp_path: Path, header: object, data: bytes, length: int | None, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read_lora(raw_safetensors(tmp_path / "x.safetensors", header, data, length))


@pytest.mark.parametrize("content", [b"", b"\0", b"\0" * 9, b"<html>not found</html>"])
def test_other_content_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a valid safetensors"):
        read_lora(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 30))
def test_damaged_bytes_cause_only_user_errors(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(save({f"{PAIR}.lora_up.weight": torch.ones(8, 2), f"{PAIR}.lora_down.weight": torch.ones(2, 8)}))
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    if rng.random() < 0.3:
        del data[rng.randrange(len(data)) :]
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    try:
        inspect_lora(path)
    except UserError as error:
        assert error.message


def test_missing_file_and_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_lora(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="holds no LoRA"):
        read_lora(tmp_path)
