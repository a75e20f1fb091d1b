"""The demonstration's figures: zero at the truth, one at the source, larger where a person sees more difference."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from demo.drawing.portraits import random_portrait, with_attributes
from demo.drawing.render import render
from demo.measure import colour_errors, distance, raw_distance, regions, style_distance


@pytest.mark.parametrize("seed", range(4))
def test_the_truth_is_at_zero_and_the_source_at_one(seed: int) -> None:
    portrait = random_portrait(seed)
    truth, source = render(portrait, "anime"), render(portrait, "photo")
    assert distance(truth, truth, source) == 0
    assert distance(source, truth, source) == 1


def test_distance_grows_from_the_truth_to_the_source() -> None:
    portrait = random_portrait(1)
    truth, source = render(portrait, "anime"), render(portrait, "photo")
    steps = [distance(Image.blend(truth, source, t), truth, source) for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert steps == sorted(steps)


def test_lost_lines_and_wrong_colours_both_count_and_a_shift_of_a_pixel_counts_less() -> None:
    portrait = random_portrait(2)
    truth = render(portrait, "anime")
    shifted = Image.fromarray(np.roll(np.asarray(truth), 1, axis=1))
    blurred = truth.filter(ImageFilter.GaussianBlur(3))
    recoloured = render(with_attributes(portrait, hair_colour="green", background_colour="grey"), "anime")
    near = raw_distance(shifted, truth)
    assert 0 < near < raw_distance(blurred, truth)
    assert near < raw_distance(recoloured, truth)


def test_another_portrait_in_the_right_style_is_farther_than_the_right_one_slightly_blurred() -> None:
    portrait = random_portrait(3)
    truth = render(portrait, "anime")
    soft = truth.filter(ImageFilter.GaussianBlur(0.7))
    assert raw_distance(soft, truth) < raw_distance(render(random_portrait(4), "anime"), truth)


def test_the_figure_hardly_depends_on_the_size() -> None:
    portrait = random_portrait(5)
    small, large = (distance(render(portrait, "flat", s), render(portrait, "anime", s), render(portrait, "photo", s)) for s in (128, 256))
    assert large == pytest.approx(small, rel=0.15)


def test_the_style_of_other_portraits_is_nearer_than_another_style_of_the_same_ones() -> None:
    people, others = ([random_portrait(first + i) for i in range(8)] for first in (500, 900))
    truth, stranger, flat, photo = (
        [render(person, style) for person in group]
        for group, style in ((people, "anime"), (others, "anime"), (people, "flat"), (people, "photo"))
    )
    assert style_distance(truth, truth) == 0
    assert 0 < style_distance(stranger, truth) < style_distance(flat, truth) < style_distance(photo, truth) <= 1


def test_what_cannot_be_measured_is_refused() -> None:
    small, wide = Image.new("RGB", (64, 64)), Image.new("RGB", (256, 128))
    for picture in (small, wide):
        with pytest.raises(ValueError, match="square"):
            raw_distance(picture, picture)
    with pytest.raises(ValueError, match="at least one"):
        style_distance([], [small])


def test_images_of_different_sizes_are_not_compared() -> None:
    portrait = random_portrait(5)
    with pytest.raises(ValueError, match="cannot compare"):
        raw_distance(render(portrait, "flat", 128), render(portrait, "flat", 160))


@pytest.mark.parametrize("region", ["hair", "skin", "background"])
def test_a_wrong_colour_is_found_in_its_own_region_with_its_own_size(region: str) -> None:
    portrait = with_attributes(random_portrait(6), accessory="none")
    truth = render(portrait, "anime")
    pixels = np.asarray(truth, np.float32)
    mask = getattr(regions(portrait), region)
    pixels[mask] = 0.8 * pixels[mask] + 0.2 * 128
    changed = Image.fromarray(pixels.astype(np.uint8))
    errors = colour_errors(changed, truth, portrait)
    expected = np.abs(np.asarray(truth, np.float32)[mask].mean(axis=0) - 128).mean() * 0.2 / 255
    assert errors.pop(region) == pytest.approx(expected, abs=0.004)
    assert all(value == 0 for value in errors.values())
