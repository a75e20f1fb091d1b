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

ROWS = 512  # that the denoiser attends to, and tokens that are read of a prompt


class AnimaText:
    """Qwen3 and the adapter. Both tokenizers read prompts literally: brackets are text."""

    def __init__(self, qwen: Any, adapter: Any, settings: TextSettings) -> None:
        self.qwen, self.adapter, self.settings = qwen, adapter, settings

    @property
    def modules(self) -> dict[str, Any]:
        """Qwen3 and the adapter, which a LoRA file may change."""
        return {"te1": self.qwen, "adapter": self.adapter}

    def tokenize(self, prompts: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        """``qwen`` and ``t5`` ids of each prompt, int64 of its own lengths, cut after ``max_tokens``."""
        import torch

        most = self.settings.max_tokens
        rows = [(qwen_tokens(prompt)[:most], [*t5_tokens(prompt)[: most - 1], T5_END]) for prompt in prompts]
        return [{"qwen": torch.tensor(qwen, dtype=torch.int64), "t5": torch.tensor(t5)} for qwen, t5 in rows]

    def conditions(self, tokens: Sequence[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        """``embeds`` (T5 tokens, width) of each prompt, on the models' device. Gradients flow where they are enabled."""
        return [{"embeds": self._embeds(row["qwen"], row["t5"])} for row in tokens]

    def encode(self, prompts: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        """``conditions`` of prompts in fp32 on the CPU, without gradients."""
        import torch

        with torch.no_grad():
            rows = self.conditions(self.tokenize(prompts))
        return [{name: tensor.float().cpu() for name, tensor in row.items()} for row in rows]

    def apply_weights(
        self, parts: Sequence[tuple[str, float]], row: dict[str, torch.Tensor], empty: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The conditioning of a prompt in ``parts`` (text, weight): both tokenizers read each part alone, and the weights scale the rows of
        its T5 tokens, as in ComfyUI. Qwen3 sees no weights, so ``row`` and ``empty`` are not used."""
        import torch

        most = self.settings.max_tokens
        qwen = [token for part, _ in parts for token in qwen_tokens(part)][:most]
        weighted = [(token, weight) for part, weight in parts for token in t5_tokens(part)][: most - 1]
        t5 = torch.tensor([*(token for token, _ in weighted), T5_END])
        weights = torch.tensor([*(weight for _, weight in weighted), 1.0])
        with torch.no_grad():
            embeds = self._embeds(torch.tensor(qwen, dtype=torch.int64), t5).float().cpu()
        return {"embeds": embeds * weights[:, None]}

    def count_tokens(self, prompt: str) -> int:
        """The tokens of ``prompt`` by the tokenizer that finds more of them."""
        return count_tokens(prompt)

    def _embeds(self, qwen: torch.Tensor, t5: torch.Tensor) -> torch.Tensor:
        import torch

        device = self.qwen.device
        if len(qwen):
            states = self.qwen(input_ids=qwen[None].to(device)).last_hidden_state
        elif self.settings.empty_prompt == "kohya":  # zeros: the adapter has no bias there, so they add nothing, as if masked
            states = torch.zeros(1, 1, self.qwen.config.hidden_size, dtype=self.qwen.dtype, device=device)
        else:  # ComfyUI passes at least one token, the padding, and does not mask its state
            states = self.qwen(input_ids=torch.tensor([[END_OF_TEXT]], device=device)).last_hidden_state
        rows: torch.Tensor = self.adapter(states, t5[None].to(device))[0]
        return rows


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
