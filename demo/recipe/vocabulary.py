"""Training a text encoder on the few hundred tokens that its captions use.

CLIP's vocabulary has 49,408 tokens, two thirds of a small model's weights. The rows of tokens that never occur
get no gradient; keeping them out of gradients, averages and optimiser saves a third of a step on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel

_KEY = "token_embedding.weight"


class UsedTokens:
    """Swaps the token embedding of ``text`` for one of the ``used`` ids (m,) only, until :meth:`whole` undoes it."""

    def __init__(self, text: CLIPTextModel, used: Tensor) -> None:
        self.used = used.unique()
        full = text.get_input_embeddings()
        self.full: Tensor = full.weight.detach().clone()
        small = nn.Embedding(len(self.used), self.full.shape[1]).to(self.full.device)
        with torch.no_grad():
            small.weight.copy_(self.full[self.used])
        text.set_input_embeddings(small)
        self.table = torch.full((len(self.full),), -1, dtype=torch.int64)  # on the CPU, as captions are
        self.table[self.used] = torch.arange(len(self.used))

    def short(self, ids: Tensor) -> Tensor:
        """Ids of the whole vocabulary to rows of the small embedding. Raises ``ValueError`` for an id not in ``used``."""
        rows = self.table[ids]
        if bool((rows < 0).any()):
            raise ValueError("a caption has a token that was not announced when training began")
        return rows

    def whole(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state of the shortened encoder as a state of the whole one; unused rows are as they were."""
        out = dict(weights)
        key = next(name for name in out if name.endswith(_KEY))
        full = self.full.clone()
        full[self.used] = out[key].to(full)
        out[key] = full
        return out
