"""Warnings about settings with which a run can start but will probably disappoint."""

from __future__ import annotations

from collections.abc import Sequence

from ..config.run_config import RunConfig
from ..core.messages import DatasetSetting, Message, Setting

_FAR = 4  # times that alpha can differ from rank before the usual learning rates no longer fit


def settings_cautions(config: RunConfig, triggers: Sequence[str]) -> list[Message]:
    """Sentences for the user about alpha, trigger words and validation prompts. ``triggers``: the trigger words of the datasets."""
    return [*alpha_cautions(config), *_triggers(config, triggers)]


def alpha_cautions(config: RunConfig) -> list[Message]:
    """A warning about an alpha with which the usual learning rates do not fit."""
    rank, alpha = config.network.rank, config.network.alpha
    if config.network.rslora or rank / _FAR <= alpha <= rank * _FAR:
        return []
    effect = "strongly" if alpha > rank else "weakly"
    return [
        Message(
            Setting("network.alpha"), f" ({alpha:g}) is far from ", Setting("network.rank"),
            f" ({rank}), so the LoRA is scaled by {alpha / rank:.2g} and learns too {effect} at the usual learning rates. Set ",
            Setting("network.alpha", rank), ".",
        )
    ]  # fmt: skip


def _triggers(config: RunConfig, triggers: Sequence[str]) -> list[Message]:
    words = [word for word in triggers if word]
    if not words:
        return [
            Message(
                "The dataset has no trigger word, so the LoRA cannot be called up by a word and changes every image. Set ",
                DatasetSetting("trigger"), " to a made-up word.",
            )
        ]  # fmt: skip
    lacking = [prompt for prompt in config.sample.prompts if not any(word.casefold() in prompt.casefold() for word in words)]
    if not lacking:
        return []
    named = words[0] if len(words) == 1 else f"any of {', '.join(words)}"
    whose = "its" if len(lacking) == 1 else "their"
    which = "A validation prompt lacks" if len(lacking) == 1 else f"{len(lacking)} validation prompts lack"
    what = "the trigger word " if len(words) == 1 else "the trigger words, "
    return [
        Message(
            f'{which} {what}{named}, so {whose} images may not show what is learned: "{_short(lacking[0])}". See ',
            Setting("sample.prompts"),
            ".",
        )
    ]


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"
