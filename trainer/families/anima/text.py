"""Anima's conditioning: Qwen3 reads the prompt, and an adapter turns its states into one row for each T5 token.

Nothing is masked or padded: each prompt is encoded alone, as in ComfyUI. The denoiser attends to 512 rows, of which those after the prompt
are zeros. They count: without them the prediction is another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..interface import TextSettings
from .tokenizers import END_OF_TEXT, T5_END, qwen_tokens, t5_tokens

if TYPE_CHECKING:
    import torch

_CAUSAL = {"full_attention": None}  # what transformers finds out for a whole prompt; to look, it would wait for the GPU
ROWS = 512  # that the denoiser attends to, and tokens that are read of a prompt


class AnimaText:
    """Qwen3, the front part, and the adapter, the back part; one that is not used is None. Both tokenizers read prompts literally: brackets
    are text."""

    def __init__(self, qwen: Any, adapter: Any, settings: TextSettings) -> None:
        self.qwen, self.adapter, self.settings = qwen, adapter, settings

    @property
    def modules(self) -> dict[str, Any]:
        """Qwen3 and the adapter, which a LoRA may change."""
        return {name: model for name, model in (("te1", self.qwen), ("adapter", self.adapter)) if model is not None}

    def tokenize(self, prompts: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        """``qwen`` and ``t5`` ids of each prompt, int64 of its own lengths, cut after ``max_tokens``."""
        return [self._tokens([(prompt, 1.0)]) for prompt in prompts]

    def conditions(self, tokens: Sequence[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        """``embeds`` (T5 tokens, width) of each prompt, on the models' device, from token ids, or from Qwen3's ``states`` (Qwen tokens,
        width) and T5's ids. Gradients flow where they are enabled."""
        return [{"embeds": self._embeds(row)} for row in tokens]

    def longest_input(self) -> dict[str, torch.Tensor]:
        """As many tokens as are read."""
        import torch

        ids, width = torch.zeros(ROWS, dtype=torch.int64, device="meta"), self.adapter.config.source_dim
        front = {"qwen": ids} if self.qwen is not None else {"states": torch.empty(ROWS, width, device="meta")}
        return {**front, "t5": ids}

    def encode(self, prompts: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        """``conditions`` of prompts in fp32 on the CPU, without gradients; of the front part Qwen3's ``states`` and T5's ids."""
        return [self._encoded(row) for row in self.tokenize(prompts)]

    def apply_weights(
        self, parts: Sequence[tuple[str, float]], row: dict[str, torch.Tensor], empty: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The conditioning of a prompt in ``parts`` (text, weight): both tokenizers read each part alone, and the weights scale the rows of
        its T5 tokens, as in ComfyUI. Qwen3 sees no weights, so ``row`` and ``empty`` are not used."""
        return self._encoded(self._tokens(parts))

    def count_tokens(self, prompt: str) -> int:
        """The tokens of ``prompt`` by the tokenizer that finds more of them."""
        return count_tokens(prompt)

    def _tokens(self, parts: Sequence[tuple[str, float]]) -> dict[str, torch.Tensor]:
        """Token ids of the texts in ``parts``, and ``weights`` of T5's tokens if there are any but 1."""
        import torch

        most = self.settings.max_tokens
        qwen = [token for part, _ in parts for token in qwen_tokens(part)][:most]
        t5 = [(token, weight) for part, weight in parts for token in t5_tokens(part)][: most - 1]
        row = {"qwen": torch.tensor(qwen, dtype=torch.int64), "t5": torch.tensor([*(token for token, _ in t5), T5_END])}
        if any(weight != 1 for _, weight in t5):
            row["weights"] = torch.tensor([*(weight for _, weight in t5), 1.0])
        return row

    def _encoded(self, row: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        import torch

        with torch.no_grad():
            if self.settings.part != "front":
                return {"embeds": self._embeds(row).float().cpu()}
            rest = {name: tensor for name, tensor in row.items() if name != "qwen"}
            return {"states": self._states(row["qwen"]).float().cpu(), **rest}

    def _embeds(self, row: dict[str, torch.Tensor]) -> torch.Tensor:
        device, dtype = self.adapter.device, self.adapter.dtype
        states = row["states"] if "states" in row else self._states(row["qwen"])
        t5 = row["t5"].to(device, non_blocking=True)
        embeds: torch.Tensor = self.adapter(states.to(device, dtype, non_blocking=True)[None], t5[None])[0]
        return embeds * row["weights"].to(embeds, non_blocking=True)[:, None] if "weights" in row else embeds

    def _states(self, ids: torch.Tensor) -> torch.Tensor:
        """Qwen3's last hidden states, (tokens, width)."""
        import torch

        device = self.qwen.device
        if not len(ids):
            if self.settings.empty_prompt == "kohya":  # zeros: the adapter has no bias there, so they add nothing, as if masked
                return torch.zeros(1, self.qwen.config.hidden_size, dtype=self.qwen.dtype, device=device)
            ids = torch.tensor([END_OF_TEXT])  # ComfyUI passes at least one token, the padding, and does not mask its state
        ids = ids.to(device, non_blocking=True)[None]
        states: torch.Tensor = self.qwen(input_ids=ids, attention_mask=_CAUSAL).last_hidden_state[0]
        return states


def count_tokens(prompt: str) -> int:
    """The tokens of ``prompt`` by the tokenizer that finds more of them; T5's with its end token."""
    return max(len(qwen_tokens(prompt)), len(t5_tokens(prompt)) + 1)


def padded(embeds: Sequence[torch.Tensor], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """One batch of ``embeds`` (tokens, width): (batch, 512, width), with zeros after each; more rows where a prompt is longer."""
    import torch

    length = max(ROWS, *(len(rows) for rows in embeds))
    batch = torch.zeros(len(embeds), length, embeds[0].shape[-1], dtype=dtype, device=device)
    moved = [rows.to(device=device, dtype=dtype, non_blocking=True) for rows in embeds]
    if any(rows.requires_grad for rows in moved):
        return torch.stack([torch.nn.functional.pad(rows, (0, 0, 0, length - len(rows))) for rows in moved])
    for target, rows in zip(batch, moved, strict=True):
        target[: len(rows)] = rows
    return batch
