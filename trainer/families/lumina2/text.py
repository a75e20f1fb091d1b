"""Lumina 2's conditioning: the states before the last layer of Gemma 2, one row for each token.

Each prompt is encoded alone, as in ComfyUI. The denoiser gets 256 rows, of which it does not attend to those after the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..interface import TextSettings
from .gemma import embedded
from .tokenizer import PADDING, START, GemmaTokenizer

if TYPE_CHECKING:
    import torch

ROWS = 256  # tokens that are read of a prompt, system prompt and start token among them: what Lumina 2 was trained with
PROMPT_START = "<Prompt Start>"
SYSTEM_PROMPT = "You are an assistant designed to generate high quality anime images based on textual prompts."  # of ComfyUI's template


class GemmaText:
    """Gemma 2 without its last layer and final norm, and its tokenizer; for planning, the tokenizer is None. It computes in ``dtype`` on
    ``device``, wherever its weights are."""

    def __init__(
        self, gemma: Any, tokenizer: GemmaTokenizer | None, settings: TextSettings, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.gemma, self.tokenizer, self.settings, self.dtype, self.device = gemma, tokenizer, settings, dtype, device

    @property
    def modules(self) -> dict[str, Any]:
        """None: a LoRA of this family changes only the denoiser."""
        return {}

    def tokenize(self, prompts: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        """``gemma`` ids of each prompt, int64 of its own length, after its system prompt; cut after ``max_tokens``."""
        import torch

        return [{"gemma": torch.tensor(self._ids([(prompt, 1.0)])[0])} for prompt in prompts]

    def conditions(self, tokens: Sequence[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        """``embeds`` (tokens, width) of each prompt, on Gemma's device."""
        return [{"embeds": self._states(row["gemma"])} for row in tokens]

    def longest_input(self) -> dict[str, torch.Tensor]:
        """As many tokens as are read."""
        import torch

        return {"gemma": torch.zeros(ROWS, dtype=torch.int64, device="meta")}

    def encode(self, prompts: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        """``conditions`` of prompts in fp32 on the CPU, without gradients."""
        import torch

        with torch.no_grad():
            return [{"embeds": row["embeds"].float().cpu()} for row in self.conditions(self.tokenize(prompts))]

    def apply_weights(
        self, parts: Sequence[tuple[str, float]], row: dict[str, torch.Tensor], empty: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The conditioning of a prompt in ``parts`` (text, weight), which are tokenised one by one. As in ComfyUI, each row goes away from
        that of a prompt of padding by its weight; ``row`` and ``empty`` are not used, since they have other lengths."""
        import torch

        ids, weights = self._ids(parts)
        padding = torch.tensor([START, *[PADDING] * (len(ids) - 1)])
        with torch.no_grad():
            states, neutral = self._states(torch.tensor(ids)).float().cpu(), self._states(padding, attended=1).float().cpu()
        return {"embeds": neutral + torch.tensor(weights)[:, None] * (states - neutral)}

    def count_tokens(self, prompt: str) -> int:
        """The tokens of ``prompt`` with its system prompt and the start token, which count."""
        assert self.tokenizer is not None
        return count_tokens(self.tokenizer, self.settings, prompt)

    def _ids(self, parts: Sequence[tuple[str, float]]) -> tuple[list[int], list[float]]:
        """Token ids of the texts in ``parts``, after the system prompt, and the weight of each."""
        assert self.tokenizer is not None
        before = system_prompt("".join(text for text, _ in parts), self.settings)
        # the system prompt and the text after it are tokenised as one text where they have the same weight
        texts = [(before + parts[0][0], parts[0][1]), *parts[1:]] if parts[0][1] == 1 else [(before, 1.0), *parts]
        weighted = [(START, 1.0), *((token, weight) for text, weight in texts for token in self.tokenizer.tokens(text))]
        ids, weights = zip(*weighted[: self.settings.max_tokens], strict=True)
        return list(ids), list(weights)

    def _states(self, ids: torch.Tensor, attended: int = 0) -> torch.Tensor:
        """(tokens, width); of the tokens, only the first ``attended`` are attended to (0: all)."""
        import torch

        mask = (torch.arange(len(ids), device=self.device) < attended).long()[None] if attended else None
        rows = embedded(self.gemma, ids, self.dtype, self.device)
        states: torch.Tensor = self.gemma(inputs_embeds=rows, attention_mask=mask).last_hidden_state[0]
        return states


def system_prompt(prompt: str, settings: TextSettings) -> str:
    """What precedes ``prompt``: the system prompt, unless ``prompt`` has one of its own, or is empty and means what ComfyUI makes of an
    empty text."""
    if PROMPT_START in prompt or (not prompt and settings.empty_prompt == "comfyui"):
        return ""
    return f"{SYSTEM_PROMPT} {PROMPT_START} "


def count_tokens(tokenizer: GemmaTokenizer, settings: TextSettings, prompt: str) -> int:
    """The tokens of ``prompt`` with its system prompt and the start token."""
    return 1 + len(tokenizer.tokens(system_prompt(prompt, settings) + prompt))


def padded(embeds: Sequence[torch.Tensor], device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """One batch of ``embeds`` (tokens, width): (batch, 256, width), and a mask (batch, 256) that is True for the rows of each prompt; more
    rows where a prompt is longer. The size is the same for all batches, so that graphs of a step can be used again."""
    import torch

    length = max(ROWS, *(len(rows) for rows in embeds))
    batch = torch.zeros(len(embeds), length, embeds[0].shape[-1], dtype=dtype, device=device)
    mask = torch.zeros(len(embeds), length, dtype=torch.bool, device=device)
    for target, attended, rows in zip(batch, mask, embeds, strict=True):
        target[: len(rows)] = rows.to(device=device, dtype=dtype, non_blocking=True)
        attended[: len(rows)] = True
    return batch, mask
