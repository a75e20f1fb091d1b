"""The caption of an image in one epoch: variants chosen, tags shuffled and dropped, or dropped as a whole."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from ...config.prepare_sections import TrainingHints
from ...core.messages import Message, Setting
from ...core.prompt_syntax import unescape
from ...core.seeding import derive_seed
from ..manifest.items import Item
from .kohya_captions import choose_variant, fixed_caption, tag_sections


def caption_at(item: Item, hints: TrainingHints, *, seed: int, epoch: int, position: int) -> str:
    """The prompt of ``item`` in slot ``position`` of ``epoch``, by the rules of sd-scripts.

    The first ``hints.keep_tokens`` comma-separated tags stay in place, or the tags before ``hints.keep_tokens_separator`` and those after
    a second one. The other tags may be shuffled, and each is dropped with probability ``tag_dropout``. The whole caption is dropped with
    probability ``caption_dropout``, for classifier-free guidance. With ``hints.wildcards``, one line and one part of each ``{a|b}`` is
    chosen. Determined by ``seed``, ``epoch`` and ``position``.
    """
    if not changes_captions(hints):
        return fixed_caption(item, hints)
    rng = random.Random(derive_seed(seed, "caption", epoch, position))
    if rng.random() < hints.caption_dropout:
        return ""
    caption = choose_variant(item.caption, rng.choice) if hints.wildcards else item.caption
    kept, rest, last = tag_sections(caption, hints)
    if hints.shuffle_caption:
        rng.shuffle(rest)
    return unescape(", ".join(kept + [tag for tag in rest if rng.random() >= hints.tag_dropout] + last))


def changes_captions(hints: TrainingHints) -> bool:
    """Whether captions differ from epoch to epoch."""
    return bool(hints.shuffle_caption or hints.caption_dropout or hints.tag_dropout or hints.wildcards)


def distinct_prompts(prompts: Sequence[str]) -> list[str]:
    """The prompts without repetition, in order, after the empty prompt that classifier-free guidance needs."""
    return list(dict.fromkeys(["", *prompts]))


def truncation_warning(named: Sequence[tuple[str, str]], limit: int, counter: Callable[[], Callable[[str], int]]) -> str:
    """A warning about captions of more than ``limit`` tokens, with the first as an example; empty without any.

    ``named``: pairs of file name and caption. ``counter`` returns a function that counts tokens; it is called only when needed.
    """
    # a token has at least one byte, so captions of up to ``limit`` bytes need no counting
    suspects = [(name, caption) for name, caption in named if len(caption.encode("utf-8", "surrogatepass")) > limit]
    if not suspects:
        return ""
    count = counter()
    cut = [(name, caption, tokens) for name, caption in suspects if (tokens := count(caption)) > limit]
    if not cut:
        return ""
    name, caption, tokens = cut[0]
    more = f", and {len(cut) - 1} more" if len(cut) > 1 else ""
    start = caption if len(caption) <= 60 else f"{caption[:60]}…"
    longest = max(tokens for _, _, tokens in cut)
    hint = Message(" Raise ", Setting("training.max_tokens"), " to read more.") if limit < longest and limit < 225 else ""
    return Message(f"{name} has {tokens} tokens, of which the first {limit} are read ({start!r}){more}.", hint)
