"""Captions as token ids, with CLIP's own tokenizer, padded with the end token as every SD 1.x tool does."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from ..drawing.portraits import Portrait, caption
from .base_model import TOKENS


def load_tokenizer(folder: Path | None = None) -> CLIPTokenizer:
    """CLIP's tokenizer from ``folder``, or from the trainer's copy.

    Raises ``FileNotFoundError`` with the place that was searched.
    """
    folder = folder or Path(__file__).resolve().parents[2] / "trainer" / "families" / "assets" / "clip_tokenizer"
    if not (folder / "vocab.json").exists():
        raise FileNotFoundError(f"no CLIP tokenizer in {folder}: give a folder with vocab.json and merges.txt")
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(str(folder), model_max_length=TOKENS)
    return tokenizer


def token_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Ids (n, 77) int64: start token, text, end token, end tokens as padding."""
    ids = tokenizer(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt").input_ids
    return torch.as_tensor(ids, dtype=torch.int64)


def training_captions(tokenizer: CLIPTokenizer, portraits: list[Portrait], style: str, variants: int, seed: int) -> Tensor:
    """``variants`` different captions of each portrait, some without style words: (n, variants, 77)."""
    rng = random.Random(f"captions-{style}-{seed}")
    texts = [caption(p, style if rng.random() > 0.08 else None, rng) for p in portraits for _ in range(variants)]
    return token_ids(tokenizer, texts).view(len(portraits), variants, TOKENS)
