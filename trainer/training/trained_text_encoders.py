"""Text encoders that are trained: prompts are encoded during training, with the current weights.

A run that does not train them needs none of this: its prompts are encoded once and read from the cache.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from ..adapters.text_adapters import adapt_text
from ..config.run_config import RunConfig
from ..config.sections.network import NetworkSection
from ..core.prompt_syntax import weighted_parts
from ..families import Family, TextEncoder
from .caching.weighted_prompts import is_weighted, prompt_text

if TYPE_CHECKING:
    import torch


class TrainedTextEncoders:
    """The text encoders of a run, each with LoRA layers."""

    def __init__(self, encoder: TextEncoder, family: Family, network: NetworkSection, seed: int, *, checkpointing: bool = False) -> None:
        self._encoder = encoder
        self._tokenizing = threading.Lock()  # tokenizers are not thread-safe, and batches are built on another thread
        adapt_text(encoder, family, network, seed)
        for model in encoder.modules.values():
            model.train()
            if checkpointing:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    @property
    def modules(self) -> dict[str, Any]:
        """The text models by component, ``te1`` and for SDXL ``te2``."""
        return self._encoder.modules

    def tokens(self, prompt: str) -> dict[str, torch.Tensor]:
        """The token ids of ``prompt``, on the CPU. Thread-safe."""
        with self._tokenizing:
            return self._encoder.tokenize([prompt])[0]

    def conditions(self, tokens: Sequence[dict[str, torch.Tensor]], *, training: bool) -> list[dict[str, torch.Tensor]]:
        """One conditioning for each of ``tokens``, on the models' device; with gradients and dropout when ``training``."""
        import torch

        for model in self.modules.values():
            model.train(training)
        with torch.set_grad_enabled(training):
            return self._encoder.conditions(tokens)

    def prompt(self, prompt: str, autocast: AbstractContextManager[Any]) -> dict[str, torch.Tensor]:
        """The conditioning of ``prompt`` (a ``prompt_key``) with the current weights, in fp32 on the CPU, as the cache returns it."""
        texts = [prompt_text(prompt[1:]), ""] if is_weighted(prompt) else [prompt]
        with autocast:
            conditions = self.conditions([self.tokens(text) for text in texts], training=False)
        rows = [{name: tensor.float().cpu() for name, tensor in row.items()} for row in conditions]
        return self._encoder.apply_weights(weighted_parts(prompt[1:]), *rows) if is_weighted(prompt) else rows[0]


def text_encoder_steps(config: RunConfig, steps: int) -> int:
    """In how many of ``steps`` optimiser steps the text encoder is trained."""
    return math.ceil(config.training.text_encoder_share * steps)
