"""Text encoders that are trained: prompts are encoded during training, with the current weights.

A run that does not train them needs none of this: its prompts are encoded once and read from the cache. One that trains only the adapter
behind a text encoder reads its inputs there.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from ..adapters.text_adapters import adapt_text
from ..compute.text_checkpointing import set_text_checkpointing
from ..config.run_config import RunConfig
from ..core.prompt_syntax import weighted_parts
from ..families import Family, TextEncoder
from .caching.cache import CacheReader
from .caching.weighted_prompts import is_weighted, prompt_text

if TYPE_CHECKING:
    import torch


class TrainedTextEncoders:
    """The text encoders of a run with LoRA layers. ``reads_cache``: they are only the back part, whose input is cached."""

    def __init__(self, encoder: TextEncoder, family: Family, config: RunConfig, *, reads_cache: bool = False) -> None:
        self._encoder, self.reads_cache = encoder, reads_cache
        self._tokenizing = threading.Lock()  # tokenizers are not thread-safe, and batches are built on another thread
        adapt_text(encoder, family, config, config.training.seed)
        for model in encoder.modules.values():
            model.train()
            if config.training.gradient_checkpointing:
                set_text_checkpointing(model, True)

    @property
    def modules(self) -> dict[str, Any]:
        """The text models by component."""
        return self._encoder.modules

    def tokens(self, prompt: str) -> dict[str, torch.Tensor]:
        """The token ids of ``prompt``, on the CPU. Thread-safe."""
        with self._tokenizing:
            return self._encoder.tokenize([prompt])[0]

    def conditions(self, tokens: Sequence[dict[str, torch.Tensor]], *, training: bool) -> list[dict[str, torch.Tensor]]:
        """One conditioning for each of ``tokens``, or of cached inputs, on the models' device; with gradients and dropout when
        ``training``."""
        import torch

        for model in self.modules.values():
            model.train(training)
        with torch.set_grad_enabled(training):
            return self._encoder.conditions(tokens)

    def conditioning(self, prompt: str, cache: CacheReader, autocast: AbstractContextManager[Any]) -> dict[str, torch.Tensor]:
        """The conditioning of ``prompt`` (a ``prompt_key``) with the current weights, in fp32 on the CPU."""
        weighted = is_weighted(prompt) and not self.reads_cache
        texts = [prompt_text(prompt[1:]), ""] if weighted else [prompt]
        inputs = [cache.prompt(text) if self.reads_cache else self.tokens(text) for text in texts]
        with autocast:
            conditions = self.conditions(inputs, training=False)
            rows = [{name: tensor.float().cpu() for name, tensor in row.items()} for row in conditions]
            return self._encoder.apply_weights(weighted_parts(prompt[1:]), *rows) if weighted else rows[0]


def text_encoder_steps(config: RunConfig, steps: int) -> int:
    """In how many of ``steps`` optimiser steps the text encoder is trained."""
    return math.ceil(config.training.text_encoder_share * steps)
