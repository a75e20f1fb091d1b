"""Emphasis in sample prompts, ``(word:1.2)``, with ComfyUI's meaning. In captions, brackets are text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...core.prompt_syntax import weighted_parts
from ...families import TextEncoder

if TYPE_CHECKING:
    import torch

_WEIGHTED = "\0"  # no caption begins with it


def prompt_key(prompt: str) -> str:
    """The key of a sample prompt in the cache: its text, or, where parts of it have a weight, something that no caption is equal to."""
    parts = weighted_parts(prompt)
    return _WEIGHTED + prompt if any(weight != 1.0 for _, weight in parts) else _text(parts)


def prompt_text(prompt: str) -> str:
    """The words of a sample prompt, without the syntax of emphasis."""
    return _text(weighted_parts(prompt))


def encode_keys(encoder: TextEncoder, keys: Sequence[str]) -> list[dict[str, torch.Tensor]]:
    """One conditioning for each caption or ``prompt_key``, in fp32 on the CPU."""
    weighted = [key.startswith(_WEIGHTED) for key in keys]
    texts = [prompt_text(key[1:]) if has_weights else key for key, has_weights in zip(keys, weighted, strict=True)]
    rows = encoder.encode(texts)
    if not any(weighted):
        return rows
    empty = encoder.encode([""])[0]
    return [
        encoder.apply_weights(weighted_parts(key[1:]), row, empty) if has_weights else row
        for key, row, has_weights in zip(keys, rows, weighted, strict=True)
    ]


def is_weighted(key: str) -> bool:
    """Whether a ``prompt_key`` has weights."""
    return key.startswith(_WEIGHTED)


def _text(parts: Sequence[tuple[str, float]]) -> str:
    # a single part stays as it is; between several the tokenizer needs a border, and spaces mean nothing to it
    return parts[0][0] if len(parts) == 1 else " ".join(text.strip() for text, _ in parts)
