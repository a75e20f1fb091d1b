"""What a caption becomes at a given moment of training: chosen, shuffled, thinned out or dropped, as the dataset asks."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from ...core.messages import Message, Setting
from ...core.prompt_syntax import unescape
from ...core.seeding import derive_seed
from ..manifest.items import Item
from ..settings import TrainingHints
from .kohya_captions import choose_variant, fixed_caption, tag_sections


def caption_at(item: Item, hints: TrainingHints, *, seed: int, epoch: int, position: int) -> str:
    """The prompt of ``item`` in slot ``position`` of ``epoch``, by the rules of kohya's reader.

    The first ``hints.keep_tokens`` comma-separated tags stay in place, or those before ``hints.keep_tokens_separator`` (and those behind
    a second one); the rest may be shuffled, and each dropped with probability ``tag_dropout``; the whole caption is dropped with
    probability ``caption_dropout`` (for guidance). With ``hints.wildcards`` one line is chosen, and one part of each ``{a|b}``.
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
    """Whether a caption is not the same in every epoch."""
    return bool(hints.shuffle_caption or hints.caption_dropout or hints.tag_dropout or hints.wildcards)


def distinct_prompts(prompts: Sequence[str]) -> list[str]:
    """The distinct prompts in their first order, with the empty prompt that guidance needs."""
    return list(dict.fromkeys(["", *prompts]))


def truncation_warning(named: Sequence[tuple[str, str]], limit: int, counter: Callable[[], Callable[[str], int]]) -> str:
    """A sentence about captions of more than ``limit`` tokens, which names the first; empty when there is none.

    ``named`` has what a caption is called, and the caption. ``counter`` gives a function that counts tokens, if one is needed at all.
    """
    # a token is a byte or more, so that short captions need no counting
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
