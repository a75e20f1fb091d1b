"""Sizes and buckets of prepared images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config.prepare_sections import BucketSettings
from trainer.config.prepare_settings import PrepareSettings, bucket_sides
from trainer.dataset.images.buckets import bucket_resolutions, fit, fit_to_bucket

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
def test_bucket_never_exceeds_the_scaled_image(width: int, height: int, resolution: int, step: int, no_upscale: bool) -> None:
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
    got = fit((width, height), PrepareSettings(resolution=side, shape="square"))
    assert got.target == (side, side)
    assert min(got.resized) == side
    assert abs(got.resized[0] / got.resized[1] / (width / height) - 1) < 0.51 / side + 1e-9


@given(st.integers(16, 5000), st.integers(16, 5000), st.sampled_from([64, 200, 512, 1000, 1024]))
@pytest.mark.seconds
def test_auto_shape_uses_buckets_only_for_images_that_are_not_square(width: int, height: int, side: int) -> None:
    """A multiple of the step or not: squares are of the resolution, the others what the bucket rules give."""
    got = fit((width, height), PrepareSettings(resolution=side))
    buckets = fit((width, height), PrepareSettings(resolution=side, shape="buckets"))
    if buckets.target[0] == buckets.target[1]:
        assert got == fit((width, height), PrepareSettings(resolution=side, shape="square"))
    else:
        assert got == buckets
    if abs(width / height - 1) < 0.03:  # nearer to 1 than to 960 × 1024, the nearest bucket of these resolutions
        assert got.target == (side, side)
    if max(width / height, height / width) > 1.4 and side > 64:
        assert (got.target[0] > got.target[1]) == (width > height)


@pytest.mark.parametrize(("data", "shape"), [
    ({}, "auto"), ({"buckets": None}, "square"), ({"buckets": {}}, "buckets"), ({"shape": "square"}, "square"),
    ({"shape": "auto", "buckets": {"step": 32}}, "auto"), ({"shape": "auto", "buckets": None}, "auto"),
])  # fmt: skip
def test_settings_without_a_shape_keep_their_meaning(data: dict[str, Any], shape: str) -> None:
    settings = PrepareSettings.model_validate(data)
    assert settings.shape == shape
    assert PrepareSettings.model_validate(settings.model_dump(mode="json")) == settings


def test_square_shape_refuses_buckets() -> None:
    with pytest.raises(ValueError, match="leave out one"):
        PrepareSettings.model_validate({"shape": "square", "buckets": {}})
