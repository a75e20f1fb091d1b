"""What a caption becomes at a given moment of training: shuffled, thinned out or dropped, as the dataset asks."""

from __future__ import annotations

import random
from collections.abc import Sequence

from .counters import derive_seed
from .dataset import Item, TrainingHints


def caption_at(item: Item, hints: TrainingHints, *, seed: int, epoch: int, position: int) -> str:
    """The prompt of ``item`` in slot ``position`` of ``epoch``.

    The first ``hints.keep_tokens`` comma-separated tags stay in place; the rest may be shuffled, and each dropped with
    probability ``tag_dropout``; the whole caption is dropped with probability ``caption_dropout`` (for guidance).
    """
    if not changes_captions(hints):
        return item.caption
    rng = random.Random(derive_seed(seed, "caption", epoch, position))
    if rng.random() < hints.caption_dropout:
        return ""
    tags = [tag.strip() for tag in item.caption.split(",")]
    kept, rest = tags[: hints.keep_tokens], tags[hints.keep_tokens :]
    if hints.shuffle_caption:
        rng.shuffle(rest)
    return ", ".join(kept + [tag for tag in rest if rng.random() >= hints.tag_dropout])


def changes_captions(hints: TrainingHints) -> bool:
    """Whether a caption is not the same in every epoch."""
    return bool(hints.shuffle_caption or hints.caption_dropout or hints.tag_dropout)


def all_captions(prompts: Sequence[str]) -> list[str]:
    """The distinct prompts in their first order, with the empty prompt that guidance needs."""
    return list(dict.fromkeys(["", *prompts]))
