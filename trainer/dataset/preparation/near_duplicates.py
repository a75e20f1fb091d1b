"""Images that look alike: sure repeats of one image are left out, doubtful pairs are shown for a decision."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from ...core.errors import Cancelled
from ...core.files.writing import write_atomic
from ..images.compare import is_same_image
from ..images.decode import Rejected, decode, open_image
from ..images.process import Processed, flattened
from ..images.signature import Looks, NearDuplicates, read_signature
from ..layout import WORK
from ..report.summary import Doubt
from ..settings import PrepareSettings
from .candidates import Job

PAIRS = "pairs.json"  # in WORK: whether two images that look alike are the same
_CLOSEST = 8  # of the images that look alike are compared: hundreds of sprites of one figure all do
_CROP_DISTANCE = 20  # of 256 bits: crops are tried in steps, and other images differ in 60 or more
_COMPARED_AT = 768  # pixels of the longer side; twice what compare.py needs
_IN_MEMORY = 32  # images
DIFFERENT = "differ in a part"
MIRRORED = "one is the mirror image of the other"
CROPPED = "one is a part of the other, or has a border"


@dataclass(frozen=True)
class Repeats:
    """``stays``: key of each repeat -> the job that stays in its place."""

    stays: dict[str, Job]
    doubtful: list[Doubt]


def find_repeats(
    jobs: Sequence[Job], known: Mapping[str, Processed], folder: Path, settings: PrepareSettings, should_stop: Callable[[], bool] | None
) -> Repeats:
    """Compare each of ``jobs`` with those that look like it. Of repeats stays the largest, with a caption, no JPEG, the first."""
    found = Repeats({}, [])
    if not settings.clean.near_duplicates:
        return found
    verdicts = _Verdicts(folder, settings)
    for regularisation in (False, True):
        finder = NearDuplicates(settings.clean.near_distance)
        group = [job for job in jobs if job.entry.is_regularisation == regularisation]
        group.sort(key=lambda job: job.worth(known[job.key]))
        kept: list[tuple[Job, Looks]] = []
        pairs: dict[frozenset[int], str] = {}
        for job in group:
            if should_stop is not None and should_stop():
                raise Cancelled
            looks = read_signature(known[job.key].signature)
            if looks is None:
                continue
            alike = sorted(finder.alike(looks), key=lambda number, whole=looks.whole: (whole ^ kept[number][1].whole).bit_count())  # type: ignore[misc]
            same = next((number for number in alike[:_CLOSEST] if verdicts.is_same(kept[number][0], job)), None)
            if same is not None:
                found.stays[job.key] = kept[same][0]
                continue
            pairs |= {frozenset((number, len(kept))): DIFFERENT for number in alike[:_CLOSEST]}
            finder.add(looks)
            kept.append((job, looks))
        wide = NearDuplicates(max(settings.clean.near_distance, _CROP_DISTANCE))
        for _, looks in kept:
            wide.add(looks)
        for number, (_, looks) in enumerate(kept):
            for others, why in ((finder.mirrored(looks), MIRRORED), (wide.cropped(looks), CROPPED)):
                for other in others:
                    if other != number:
                        pairs.setdefault(frozenset((number, other)), why)
        found.doubtful.extend(_doubts(kept, pairs))
    verdicts.save()
    return found


def _doubts(kept: Sequence[tuple[Job, Looks]], pairs: Mapping[frozenset[int], str]) -> Iterator[Doubt]:
    for pair, why in pairs.items():
        first, second = (kept[number][0] for number in sorted(pair))
        files = tuple(job.target.relative_to(job.folder).as_posix() for job in (first, second))
        yield Doubt((first.entry.name, second.entry.name), (files[0], files[1]), why)


class _Verdicts:
    """Whether two sources are the same image; remembered, because both are read for it."""

    def __init__(self, folder: Path, settings: PrepareSettings) -> None:
        self._path = folder / WORK / PAIRS
        self._settings = settings
        self._before: dict[str, bool] = {}
        with suppress(OSError, ValueError, RecursionError):
            data = json.loads(self._path.read_bytes())
            if isinstance(data, dict):
                self._before = {str(pair): bool(same) for pair, same in data.items()}
        self._now: dict[str, bool] = {}
        self._image = lru_cache(maxsize=_IN_MEMORY)(self._read)

    def is_same(self, a: Job, b: Job) -> bool:
        pair = " ".join(sorted((a.key[:32], b.key[:32])))
        if pair not in self._now:
            self._now[pair] = self._before[pair] if pair in self._before else self._compare(a, b)
        return self._now[pair]

    def save(self) -> None:
        if self._now != self._before:
            write_atomic(self._path, json.dumps(self._now))

    def _compare(self, a: Job, b: Job) -> bool:
        first, second = self._image(a), self._image(b)
        return first is not None and second is not None and is_same_image(first, second)

    def _read(self, job: Job) -> Image.Image | None:
        """The image as it is trained, but for crop and size; None when it cannot be read any more."""
        data = job.read()
        if isinstance(data, str):
            return None
        try:
            picture = decode(open_image(data, self._settings.clean.max_megapixels) if isinstance(data, bytes) else data)
        except Rejected:
            return None
        image = flattened(picture, self._settings)
        scale = _COMPARED_AT / max(image.size)
        if scale >= 1:
            return image
        return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BOX)
