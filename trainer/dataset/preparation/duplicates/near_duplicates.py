"""Images that look alike: copies of one image are left out, pairs that may be copies are reported to the user."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from PIL import Image

from ....config.prepare_settings import PrepareSettings
from ....core.errors import Cancelled
from ....core.files.reading import read_regular
from ....core.files.writing import write_atomic
from ...images.compare import is_same_image
from ...images.decode import Rejected, decode_image, open_image
from ...images.process import ProcessedImage, flattened
from ...images.signature import Signature, SimilarityIndex, parse_signature
from ...layout import LARGEST_MANIFEST, WORK
from ...report.summary import SimilarPair
from ..candidates import Candidate

COMPARISONS = "pairs.json"  # in WORK: which pairs of similar images are the same image
_MAX_COMPARISONS = 8  # for one image: hundreds of sprites of one figure all look alike
_CROP_DISTANCE = 20  # of 256 bits: only a few crops are hashed; the hashes of unrelated images differ in 60 bits or more
_COMPARED_SIDE = 768  # pixels of the longer side; twice what compare.py works at
_CACHED_IMAGES = 32
DIFFERENT = "differ in a part"
MIRRORED = "one is the mirror image of the other"
CROPPED = "one is a part of the other, or has a border"


@dataclass(frozen=True)
class NearDuplicates:
    """``replaced_by``: key of each image to leave out -> the image that stays. ``similar``: pairs of which both stay."""

    replaced_by: dict[str, Candidate] = field(default_factory=dict)
    similar: list[SimilarPair] = field(default_factory=list)


def find_near_duplicates(
    candidates: Sequence[Candidate],
    results: Mapping[str, ProcessedImage],
    folder: Path,
    settings: PrepareSettings,
    should_stop: Callable[[], bool] | None,
) -> NearDuplicates:
    """Compare images that look alike. Of several copies the largest stays, then one with a caption, then one that is no JPEG.

    ``results``: by the candidates' keys. Raises Cancelled when ``should_stop`` returned True.
    """
    found = NearDuplicates()
    if not settings.clean.near_duplicates:
        return found
    comparisons = _Comparisons(folder, settings)
    for is_regularisation in (False, True):
        group = [candidate for candidate in candidates if candidate.entry.is_regularisation == is_regularisation]
        group.sort(key=lambda candidate: candidate.preference(results[candidate.key]))
        _search(group, results, settings.clean.near_distance, comparisons, found, should_stop)
    comparisons.save()
    return found


def _search(
    group: Sequence[Candidate],
    results: Mapping[str, ProcessedImage],
    distance: int,
    comparisons: _Comparisons,
    found: NearDuplicates,
    should_stop: Callable[[], bool] | None,
) -> None:
    """Add what ``group`` (the preferred images first) holds to ``found``."""
    index = SimilarityIndex(distance)
    kept: list[tuple[Candidate, Signature]] = []
    pairs: dict[frozenset[int], str] = {}
    for candidate in group:
        if should_stop is not None and should_stop():
            raise Cancelled
        signature = parse_signature(results[candidate.key].signature)
        if signature is None:
            continue
        distances = {number: (signature.phash ^ kept[number][1].phash).bit_count() for number in index.similar(signature)}
        closest = sorted(distances, key=lambda number: distances[number])[:_MAX_COMPARISONS]
        same = next((number for number in closest if comparisons.is_same(kept[number][0], candidate)), None)
        if same is not None:
            found.replaced_by[candidate.key] = kept[same][0]
            continue
        pairs |= {frozenset((number, len(kept))): DIFFERENT for number in closest}
        index.add(signature)
        kept.append((candidate, signature))
    for pair, why in _mirrored_and_cropped([signature for _, signature in kept], index, distance):
        pairs.setdefault(pair, why)
    found.similar.extend(_similar_pairs([candidate for candidate, _ in kept], pairs))


def _mirrored_and_cropped(signatures: Sequence[Signature], index: SimilarityIndex, distance: int) -> Iterator[tuple[frozenset[int], str]]:
    """Pairs of which one looks like the mirror image or a crop of the other. ``index`` holds ``signatures``."""
    crop_index = SimilarityIndex(max(distance, _CROP_DISTANCE))
    for signature in signatures:
        crop_index.add(signature)
    for number, signature in enumerate(signatures):
        for others, why in ((index.mirrored(signature), MIRRORED), (crop_index.cropped(signature), CROPPED)):
            for other in others:
                if other != number:
                    yield frozenset((number, other)), why


def _similar_pairs(candidates: Sequence[Candidate], pairs: Mapping[frozenset[int], str]) -> Iterator[SimilarPair]:
    for pair, why in pairs.items():
        first, second = (candidates[number] for number in sorted(pair))
        yield SimilarPair((first.entry.name, second.entry.name), (first.relative_target, second.relative_target), why)


class _Comparisons:
    """Whether two sources are the same image. Results are kept between runs, because comparing reads both files."""

    def __init__(self, folder: Path, settings: PrepareSettings) -> None:
        self._path = folder / WORK / COMPARISONS
        self._settings = settings
        self._stored: dict[str, bool] = {}
        with suppress(OSError, ValueError, RecursionError):
            data = json.loads(read_regular(self._path, LARGEST_MANIFEST))
            if isinstance(data, dict):
                self._stored = {str(pair): bool(same) for pair, same in data.items()}
        self._current: dict[str, bool] = {}
        self._image = lru_cache(maxsize=_CACHED_IMAGES)(self._read)

    def is_same(self, a: Candidate, b: Candidate) -> bool:
        pair = " ".join(sorted((a.key[:32], b.key[:32])))
        if pair not in self._current:
            self._current[pair] = self._stored[pair] if pair in self._stored else self._compare(a, b)
        return self._current[pair]

    def save(self) -> None:
        if self._current != self._stored:
            write_atomic(self._path, json.dumps(self._current))

    def _compare(self, a: Candidate, b: Candidate) -> bool:
        first, second = self._image(a), self._image(b)
        return first is not None and second is not None and is_same_image(first, second)

    def _read(self, candidate: Candidate) -> Image.Image | None:
        """The image on its background, scaled down but not cropped; None when it can no longer be read."""
        data = candidate.read()
        if isinstance(data, str):
            return None
        try:
            decoded = decode_image(open_image(data, self._settings.clean.max_megapixels) if isinstance(data, bytes) else data)
        except Rejected:
            return None
        image = flattened(decoded, self._settings)
        scale = _COMPARED_SIDE / max(image.size)
        if scale >= 1:
            return image
        return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BOX)
