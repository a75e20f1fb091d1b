"""The size of each prepared image. Aspect-ratio buckets follow the rules of kohya's sd-scripts.

The rules are those of ``make_bucket_resolutions`` and ``BucketManager.select_bucket``; the tests compare with results recorded from
that code. Sizes are (width, height) in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from ...config.prepare_settings import PrepareSettings, bucket_rules, bucket_sides

Size = tuple[int, int]


@dataclass(frozen=True)
class Fit:
    """``target``: the final size. ``resized``: the size to which the source is scaled before ``target`` is cropped from it."""

    target: Size
    resized: Size


@lru_cache(maxsize=64)
def bucket_resolutions(resolution: Size, low: int, high: int, step: int) -> tuple[Size, ...]:
    """All bucket sizes, sorted: sides from ``low`` to ``high`` in multiples of ``step``, at most the area of ``resolution``."""
    area = resolution[0] * resolution[1]
    square = int(math.sqrt(area) // step) * step
    sizes = {(square, square)}
    for width in range(low, high + 1, step):
        height = min(high, area // width // step * step)
        if height >= low:
            sizes |= {(width, height), (height, width)}
    return tuple(sorted(sizes))


def fit_to_bucket(image: Size, resolution: Size, low: int, high: int, step: int, no_upscale: bool) -> Fit:
    """The bucket of an image. A side of ``target`` is 0 when the image is smaller than one step."""
    if no_upscale:
        return _fit_without_upscaling(image, resolution[0] * resolution[1], step)
    width, height = image
    aspect = width / height
    sizes = bucket_resolutions(resolution, low, high, step)
    target = image if image in sizes else min(sizes, key=lambda size: abs(size[0] / size[1] - aspect))
    scale = target[1] / height if aspect > target[0] / target[1] else target[0] / width
    return Fit(target, (_round(width * scale), _round(height * scale)))


def fit_to_square(image: Size, side: int) -> Fit:
    """A square of ``side`` pixels, covered by the scaled image."""
    width, height = image
    scale = side / min(width, height)
    return Fit((side, side), (max(side, _round(width * scale)), max(side, _round(height * scale))))


def fit(image: Size, settings: PrepareSettings) -> Fit:
    """The size of an image by the settings."""
    side = settings.resolution
    rules = bucket_rules(settings)
    if rules is None:
        return fit_to_square(image, side)
    low, high = bucket_sides(settings)
    chosen = fit_to_bucket(image, (side, side), low, high, rules.step, rules.no_upscale)
    if settings.shape == "auto" and chosen.target[0] == chosen.target[1] and not rules.no_upscale:
        return fit_to_square(image, side)  # of the exact resolution, which need not be a multiple of the step
    return chosen


def _fit_without_upscaling(image: Size, area: int, step: int) -> Fit:
    width, height = resized = image
    if width * height > area:
        aspect = width / height
        ideal_width = math.sqrt(area * aspect)
        # one side becomes a multiple of the step: the one that changes the aspect ratio less
        by_width = _floor_to(_round(ideal_width), step)
        by_height = _floor_to(_round(area / ideal_width), step)
        if not by_width or not by_height:  # extreme strips
            return Fit((0, 0), image)
        height_for_width = _floor_to(_round(by_width / aspect), step)
        width_for_height = _floor_to(_round(by_height * aspect), step)
        if not height_for_width or not width_for_height:
            return Fit((0, 0), image)
        if abs(by_width / height_for_width - aspect) < abs(width_for_height / by_height - aspect):
            resized = (by_width, _round(by_width / aspect))
        else:
            resized = (_round(by_height * aspect), by_height)
    return Fit((_floor_to(resized[0], step), _floor_to(resized[1], step)), resized)


def _round(value: float) -> int:
    return int(value + 0.5)


def _floor_to(value: int, step: int) -> int:
    return value - value % step
