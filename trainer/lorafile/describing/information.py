"""Information about a LoRA file: family, format, algorithm, rank, targets, trigger words, faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeGuard

from PIL import Image

from ..metadata_values import json_object, text_value
from ..naming.family_layouts import FAMILY_TITLES
from ..reading.read_lora import scan_lora
from ..thumbnail import from_data_url
from ..weights import LoraWeights

_ALWAYS = 0.95  # a tag in at least this share of the captions counts as a trigger word
_MOST_TAGS = 32
_MOST_STATED, _LONGEST_STATED = 256, 1000  # trigger words, and characters of one
_LONGEST_TABLE = 8_000_000  # characters of JSON in the metadata, about 400,000 tags; parsing takes fifty times as much memory


@dataclass(frozen=True)
class LoraInfo:
    """Everything that is known about a LoRA file without its base model."""

    path: Path
    family: str
    format: str
    algorithm: str
    rank: int | None  # of most layers
    alpha: float | None
    targets: Mapping[str, int]  # component: number of adapted layers
    trigger_words: tuple[str, ...]
    base: str  # name of the checkpoint that it was trained on
    title: str
    prediction: str  # what its model was trained to predict, as the file states it: "epsilon", "v", "flow" or another program's word
    thumbnail: Image.Image | None
    metadata: Mapping[str, str]
    problems: tuple[str, ...]
    usable: bool
    notes: tuple[str, ...] = ()
    unknown_keys: tuple[str, ...] = ()
    family_reason: str = ""
    context_width: int | None = None
    ranks: Mapping[int, int] = field(default_factory=dict)  # rank: number of layers
    dtype: str = ""
    dora: bool = False
    blocks: int = 0  # of a transformer that the file needs at least
    tags: tuple[tuple[str, int], ...] = ()  # the most frequent ones of the captions, with their counts

    def to_json(self) -> dict[str, Any]:
        """The information as plain data, with the size of the thumbnail instead of the image."""
        return {
            "path": str(self.path),
            "usable": self.usable,
            "problems": list(self.problems),
            "notes": list(self.notes),
            "unknown_keys": list(self.unknown_keys),
            "family": self.family,
            "family_name": FAMILY_TITLES.get(self.family, self.family),
            "family_reason": self.family_reason,
            "format": self.format,
            "algorithm": self.algorithm,
            "rank": self.rank,
            "ranks": {str(rank): count for rank, count in self.ranks.items()},
            "alpha": self.alpha,
            "dtype": self.dtype,
            "targets": dict(self.targets),
            "blocks": self.blocks,
            "trigger_words": list(self.trigger_words),
            "base": self.base,
            "title": self.title,
            "prediction": self.prediction,
            "thumbnail": list(self.thumbnail.size) if self.thumbnail else None,
            "metadata": {key: value for key, value in self.metadata.items() if key != "modelspec.thumbnail"},
        }


def inspect_lora(path: Path) -> LoraInfo:
    """Inspect a LoRA file. Raises UserError when it cannot be read; faults of its content are in ``problems``."""
    return describe_lora(Path(path), scan_lora(Path(path)))


def describe_lora(path: Path, weights: LoraWeights) -> LoraInfo:
    """The information about a file that has been read."""
    metadata = weights.metadata
    ranks = Counter(module.rank for module in weights if module.rank)
    sizes = [t for t in (module.alpha for module in weights) if t is not None and t.numel() == 1]
    alphas = Counter(float(alpha.float().item()) for alpha in sizes)
    tags, images = tag_counts(metadata)
    return LoraInfo(
        path=path,
        family=weights.family,
        format=weights.format,
        algorithm=weights.algorithm,
        rank=ranks.most_common(1)[0][0] if ranks else None,
        alpha=alphas.most_common(1)[0][0] if alphas else None,
        targets=dict(sorted(Counter(module.component for module in weights).items())),
        trigger_words=stated_words(metadata) or _in_every_caption(tags, images),
        base=text_value(metadata, "ss_sd_model_name"),
        title=text_value(metadata, "modelspec.title") or text_value(metadata, "ss_output_name") or path.stem,
        prediction=text_value(metadata, "modelspec.prediction_type"),
        thumbnail=from_data_url(metadata.get("modelspec.thumbnail", "")),
        metadata=dict(metadata),
        problems=weights.problems,
        usable=not weights.fatal,
        notes=(*weights.notes, *_unread_tables(metadata)),
        unknown_keys=weights.unknown_keys,
        family_reason=weights.family_reason,
        context_width=weights.context_width,
        ranks={rank: count for rank, count in sorted(ranks.items()) if rank is not None},
        dtype=str(weights.dtype).removeprefix("torch.") if weights.dtype else "",
        dora=any(module.is_dora for module in weights),
        blocks=weights.blocks,
        tags=tuple(tags.most_common(_MOST_TAGS)),
    )


def trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The trigger phrase of the model specification, otherwise the tags of nearly all captions, the most frequent first."""
    return stated_words(metadata) or _in_every_caption(*tag_counts(metadata))


def stated_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The trigger phrase of the model specification, split at commas; empty without one."""
    return plausible_words(text_value(metadata, "modelspec.trigger_phrase").split(","))


def plausible_words(words: Iterable[str]) -> tuple[str, ...]:
    """The first 256 of ``words`` that are not empty or longer than any trigger word: some uses compare each with every other."""
    stripped = (word.strip() for word in words)
    return tuple(islice((word for word in stripped if 0 < len(word) <= _LONGEST_STATED), _MOST_STATED))


def _in_every_caption(tags: Counter[str], images: float) -> tuple[str, ...]:
    return tuple(tag for tag, count in tags.most_common(5) if tag and images and count >= _ALWAYS * images)


def tag_counts(metadata: Mapping[str, str]) -> tuple[Counter[str], float]:
    """The number of captions with each tag (kohya's ``ss_tag_frequency``), and the number of images. Parses each table once."""
    images: float = 0
    tags = Counter[str]()
    folders = _table(metadata, "ss_dataset_dirs")
    for folder, counts in _table(metadata, "ss_tag_frequency").items():
        if not isinstance(counts, dict):
            continue
        numbers = {str(tag).strip(): n for tag, n in counts.items() if _is_count(n)}
        directory = folders.get(folder)
        known = directory.get("img_count") if isinstance(directory, dict) else None
        images += known if _is_count(known) else max(numbers.values(), default=0)
        tags.update(numbers)
    return tags, images


def _unread_tables(metadata: Mapping[str, str]) -> list[str]:
    """A note for each table that is too large to parse."""
    sizes = {key: len(metadata.get(key, "")) for key in ("ss_tag_frequency", "ss_dataset_dirs")}
    return [f"{key} is {size / 1e6:.0f} MB and was not read" for key, size in sizes.items() if size > _LONGEST_TABLE]


def _table(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    text = metadata.get(key, "{}")
    return {} if len(text) > _LONGEST_TABLE else json_object(text)


def _is_count(value: object) -> TypeGuard[int]:
    """Whether a value in the metadata is a plausible number of images, unlike one with hundreds of digits."""
    return isinstance(value, int) and 0 <= value < 1 << 53
