"""Buckets equal kohya's. ``kohya_buckets.json`` was recorded from kohya-ss/sd-scripts by ``tests/tools/record_kohya.py``: for each
rule ``BucketManager(no_upscale, resolution, min, max, step)``, ``make_buckets()``, then ``select_bucket(width, height)`` for 300 sizes;
each row is [image, bucket, resized]."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.dataset.buckets import bucket_resolutions, fit, fit_to_bucket
from trainer.dataset.settings import BucketSettings, PrepareSettings, bucket_sides

RECORDED: list[dict[str, Any]] = json.loads((Path(__file__).parent / "kohya_buckets.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("rule", RECORDED, ids=lambda rule: f"{rule['resolution']}-{rule['step']}-{rule['no_upscale']}")
def test_buckets_equal_kohyas(rule: dict[str, Any]) -> None:
    resolution = tuple(rule["resolution"])
    sizes = bucket_resolutions(resolution, rule["min"], rule["max"], rule["step"])
    assert [list(size) for size in sizes] == rule["buckets"]
    assert len(rule["images"]) == 300
    for image, bucket, resized in rule["images"]:
        got = fit_to_bucket(tuple(image), resolution, rule["min"], rule["max"], rule["step"], rule["no_upscale"])
        assert [list(got.target), list(got.resized)] == [bucket, resized], image


@given(st.integers(16, 5000), st.integers(16, 5000), st.sampled_from([256, 512, 768, 1024]), st.sampled_from([8, 32, 64]), st.booleans())
def test_a_bucket_never_exceeds_what_it_is_cut_from(width: int, height: int, resolution: int, step: int, no_upscale: bool) -> None:
    settings = PrepareSettings(resolution=resolution, buckets=BucketSettings(step=step, no_upscale=no_upscale))
    got = fit((width, height), settings)
    assert got.target[0] <= got.resized[0] and got.target[1] <= got.resized[1]
    assert got.target[0] % step == 0 and got.target[1] % step == 0
    if not no_upscale:
        low, high = bucket_sides(settings)
        assert low <= min(got.target) and max(got.target) <= high
        assert got.target[0] * got.target[1] <= resolution * resolution


@given(st.integers(16, 5000), st.integers(16, 5000), st.sampled_from([64, 512, 1024]))
def test_square_is_covered_exactly_on_the_shorter_side(width: int, height: int, side: int) -> None:
    got = fit((width, height), PrepareSettings(resolution=side))
    assert got.target == (side, side)
    assert min(got.resized) == side
    assert abs(got.resized[0] / got.resized[1] / (width / height) - 1) < 0.51 / side + 1e-9
