"""The tokenizers of Qwen3 and T5, from the copies in the pack."""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path
from typing import Any

END_OF_TEXT = 151_643  # Qwen's padding
T5_END = 1
_ASSETS = Path(__file__).parents[1] / "assets"


def qwen_tokens(prompt: str) -> list[int]:
    """Qwen's token ids of ``prompt``, without start and end tokens."""
    return list(_tokenizer("qwen_tokenizer").encode(prompt, add_special_tokens=False).ids)


def t5_tokens(prompt: str) -> list[int]:
    """T5's token ids of ``prompt``, without the end token. Characters that T5 lacks, such as Japanese ones, are the unknown token (2)."""
    return list(_tokenizer("t5_tokenizer").encode(prompt, add_special_tokens=False).ids)


@cache
def _tokenizer(name: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(gzip.decompress((_ASSETS / name / "tokenizer.json.gz").read_bytes()).decode())
