"""Text encoders that are trained: LoRA inside, and prompts that are encoded with the weights of the moment.

A run that leaves them alone needs none of this: its prompts are encoded once and read from the cache.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from ..adapters.text_encoders import adapt_text
from ..config.run_config import RunConfig
from ..config.sections.network import NetworkSection
from ..families import Family, TextEncoder
from .weighted_prompts import is_weighted, prompt_text, weigh

if TYPE_CHECKING:
    import torch

    from .job import Job


class TrainedText:
    """The text encoders of a run, each with LoRA layers."""

    def __init__(self, encoder: TextEncoder, family: Family, network: NetworkSection, seed: int, *, checkpointing: bool = False) -> None:
        self._encoder = encoder
        self._tokenizing = threading.Lock()  # a tokenizer is not made for two threads, and batches are prepared on one of their own
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
        """The token ids of ``prompt``, on the CPU; from any thread."""
        with self._tokenizing:
            return self._encoder.tokenize([prompt])[0]

    def conditions(self, tokens: Sequence[dict[str, torch.Tensor]], *, learning: bool) -> list[dict[str, torch.Tensor]]:
        """One conditioning for each of ``tokens``, on the models' device; with gradients and dropout while ``learning``."""
        import torch

        for model in self.modules.values():
            model.train(learning)
        with torch.set_grad_enabled(learning):
            return self._encoder.conditions(tokens)

    def prompt(self, prompt: str, autocast: AbstractContextManager[Any]) -> dict[str, torch.Tensor]:
        """The conditioning of ``prompt`` (a ``prompt_key``) in fp32 on the CPU, as the cache gives it, with the weights as they are now."""
        texts = [prompt_text(prompt[1:]), ""] if is_weighted(prompt) else [prompt]
        with autocast:
            conditions = self.conditions([self.tokens(text) for text in texts], learning=False)
        rows = [{name: tensor.float().cpu() for name, tensor in row.items()} for row in conditions]
        return weigh(self._encoder, prompt[1:], *rows) if is_weighted(prompt) else rows[0]


def load_trained_text(job: Job) -> TrainedText:
    """The text encoders of ``job`` with LoRA layers, on its device."""
    encoder = job.family.load_text_encoder(job.checkpoint, job.dtype, job.device, job.cache.text)
    training = job.config.training
    text = TrainedText(encoder, job.family, job.config.network, training.seed, checkpointing=training.gradient_checkpointing)
    for model in text.modules.values():
        model.to(job.device)  # the layers were made on the CPU, so that a seed means the same everywhere
    return text


def text_steps(config: RunConfig, steps: int) -> int:
    """How many of ``steps`` optimiser steps the text encoder takes part in."""
    return math.ceil(config.training.text_encoder_share * steps)
