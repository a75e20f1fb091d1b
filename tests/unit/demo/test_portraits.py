"""Drawn portraits: deterministic, described by their captions, the same geometry in every style."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from demo.drawing.portraits import BASE_STYLES, CHOICES, STYLES, attribute_names, caption, portrait_tags, random_portrait, with_attributes
from demo.drawing.render import render, sheet
from demo.measure import regions


@pytest.mark.parametrize("style", STYLES)
def test_the_same_seed_draws_the_same_portrait(style: str) -> None:
    first, again = (render(random_portrait(11), style) for _ in range(2))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != render(random_portrait(12), style).tobytes()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("size", [128, 200, 256])
def test_a_larger_portrait_is_the_same_portrait(style: str, size: int) -> None:
    portrait = with_attributes(random_portrait(3), background="plain")
    large = render(portrait, style, size)
    assert (large.size, large.mode) == ((size, size), "RGB")
    small = np.asarray(render(portrait, style, 128), np.float32)
    reduced = np.asarray(large.resize((128, 128), Image.Resampling.BOX), np.float32)
    assert np.abs(small - reduced).mean() < 6  # of 255: only lines of a pixel's width differ


def test_a_portrait_has_at_least_twelve_attributes_and_captions_depend_on_each() -> None:
    assert len(attribute_names()) >= 12
    for name, values in CHOICES.items():
        texts = {caption(with_attributes(random_portrait(5), **{name: value}), "photo") for value in values}
        assert len(texts) == len(values), name


@pytest.mark.parametrize("name", sorted(CHOICES))
def test_every_attribute_can_be_seen_in_every_style(name: str) -> None:
    portrait = with_attributes(random_portrait(8), accessory="none", glasses="none", fringe="parted", background="dotted", cheeks="plain")
    for style in STYLES:
        pictures = {render(with_attributes(portrait, **{name: value}), style).tobytes() for value in CHOICES[name]}
        assert len(pictures) == len(CHOICES[name]), style


def test_an_unknown_attribute_or_value_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown portrait attribute 'beard'"):
        with_attributes(random_portrait(0), beard="long")
    with pytest.raises(ValueError, match="hair_colour cannot be 'plaid'"):
        with_attributes(random_portrait(0), hair_colour="plaid")
    with pytest.raises(ValueError, match="unknown style"):
        render(random_portrait(0), "oil")


def test_captions_lead_with_the_style_and_leave_it_out_on_request() -> None:
    portrait = random_portrait(2)
    for style in BASE_STYLES:
        assert caption(portrait, style) == caption(portrait, style).split(", ")[0] + ", " + ", ".join(portrait_tags(portrait))
    assert caption(portrait, None) == ", ".join(portrait_tags(portrait))
    assert caption(portrait, "photo").startswith("photo portrait, ")


def test_shuffled_captions_keep_the_style_in_front_and_only_leave_tags_out() -> None:
    portrait, rng = random_portrait(2), random.Random(0)
    for _ in range(50):
        first, *rest = caption(portrait, "pencil", rng).split(", ")
        assert first == "pencil drawing"
        assert set(rest) <= set(portrait_tags(portrait))
        assert len(rest) == len(set(rest))


@pytest.mark.parametrize("style", STYLES)
def test_colours_lie_where_the_geometry_places_them(style: str) -> None:
    """Red hair on blue is red in the hair's region and blue in the background's, in every style."""
    portrait = with_attributes(
        random_portrait(4), hair_colour="red", background_colour="blue", background="plain", accessory="none", hair_style="long"
    )
    picture = np.asarray(render(portrait, style), np.float32)
    found = regions(portrait)
    hair, background = picture[found.hair].mean(axis=0), picture[found.background].mean(axis=0)
    assert hair[0] > hair[2] + 30
    assert background[2] > background[0] + 15
    assert found.hair.sum() > 300 and found.skin.sum() > 100 and found.background.sum() > 1000
    assert not (found.hair & found.skin).any() and not (found.hair & found.background).any()


def test_anime_has_dark_outlines_and_flat_tones_where_the_photo_has_neither() -> None:
    dark, flat = {}, {}
    for style in ("photo", "anime"):
        pixels = [
            np.asarray(render(with_attributes(random_portrait(i), hair_colour="blonde", clothes_colour="yellow"), style), np.int32)
            for i in range(6)
        ]
        dark[style] = np.mean([(p.sum(axis=2) < 180).mean() for p in pixels])
        flat[style] = np.mean([(np.abs(np.diff(p, axis=1)).sum(axis=2) == 0).mean() for p in pixels])
    assert dark["anime"] > 2 * dark["photo"]
    assert flat["anime"] > 2 * flat["photo"]


def test_a_sheet_has_all_portraits() -> None:
    picture = render(random_portrait(0), "flat")
    assert sheet([[picture, picture], [picture]], gap=2).size == (2 + 2 * 130, 2 + 2 * 130)
