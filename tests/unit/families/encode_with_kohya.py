"""Encode prompts with kohya's own code and print the result as JSON. ``test_long_prompts.py`` runs this in a process of its own.

    KOHYA_PATH=sd-scripts python -m tests.unit.families.encode_with_kohya > tests/unit/families/kohya_prompts.json

``library/strategy_sd.py`` and ``strategy_sdxl.py`` are used unchanged. Two modules that they import, for logging and datasets, are replaced
by empty ones. The text models are stand-ins whose states encode the position of each token.
"""

from __future__ import annotations

import json
import os
import sys
import types
from itertools import groupby
from typing import Any

import torch
from transformers import CLIPTokenizer
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.clip.modeling_clip import CLIPTextModelOutput

from trainer.families.stable_diffusion.clip_text import tokenizer_folder

LENGTHS = (75, 150, 225)
LAYERS = 12
FINAL_NORM = 1000.0  # added by the stand-in for the final norm
PROMPTS = [
    "",
    "a photo of a cat",
    "cat " * 75,
    "cat " * 76,
    "cat " * 75 + "!+",  # the second chunk begins with token 0, which is padding for some encoders
    "cat " * 149 + "!+",  # the second chunk ends with it
    ", ".join(f"tag number {number} of a long caption" for number in range(40)),
]


class Positions(torch.nn.Module):
    """A text model whose hidden state of a token is (layer, row x 77 + position). ``projected``: the pooled output is the end token's."""

    def __init__(self, *, projected: bool = False) -> None:
        super().__init__()
        self.projected = projected
        self.device = torch.device("cpu")
        self.text_model = types.SimpleNamespace(final_layer_norm=lambda states: states + torch.tensor([FINAL_NORM, 0.0]))
        self.text_projection = torch.nn.Identity()
        self.text_projection.weight = torch.zeros(1)

    def forward(self, ids: torch.Tensor, output_hidden_states: bool = False, return_dict: bool = True) -> Any:
        """The output in transformers' classes for models with and without a projection."""
        places = torch.arange(ids.numel(), dtype=torch.float32).reshape(ids.shape)
        states = tuple(torch.stack([torch.full_like(places, layer), places], dim=-1) for layer in range(LAYERS + 1))
        last = self.text_model.final_layer_norm(states[-1])
        if not self.projected:
            return BaseModelOutput(last_hidden_state=last, hidden_states=states)
        ends = (ids == 49407).int().argmax(dim=-1)
        return CLIPTextModelOutput(text_embeds=last[torch.arange(len(ids)), ends], last_hidden_state=last, hidden_states=states)


def _with_kohya(path: str) -> dict[str, Any]:
    """``{family: {length: [{"ids": by encoder, "states": by encoder, plus SDXL's pooled one}]}}`` with an entry for each prompt."""
    sys.path.insert(0, path)
    utils = types.ModuleType("library.utils")
    utils.setup_logging = lambda *arguments, **options: None  # type: ignore[attr-defined]
    sys.modules["library.utils"] = utils
    sys.modules["library.train_util"] = types.ModuleType("library.train_util")
    import library
    from library import strategy_base, strategy_sd, strategy_sdxl

    library.train_util = sys.modules["library.train_util"]

    def load(self: Any, model_class: Any, model_id: str, subfolder: str | None = None, tokenizer_cache_dir: str | None = None) -> Any:
        tokenizer = CLIPTokenizer.from_pretrained(str(tokenizer_folder()), local_files_only=True)
        if subfolder:  # SD 2's tokenizer pads with token 0
            tokenizer.pad_token = "!"
        return tokenizer

    strategy_base.TokenizeStrategy._load_tokenizer = load
    found: dict[str, Any] = {}
    for family in ("sd1", "sd1 clip skip 2", "sd2", "sdxl"):
        found[family] = {}
        for length in LENGTHS:
            if family == "sdxl":
                tokens, encode = strategy_sdxl.SdxlTokenizeStrategy(length), strategy_sdxl.SdxlTextEncodingStrategy()
                models = [Positions(), Positions(projected=True)]
            else:
                tokens = strategy_sd.SdTokenizeStrategy(family == "sd2", length)
                encode, models = strategy_sd.SdTextEncodingStrategy(2 if "skip" in family else None), [Positions()]
            rows = []
            for prompt in PROMPTS:
                ids = list(tokens.tokenize(prompt))
                rows.append((ids, encode.encode_tokens(tokens, models, ids)))
            found[family][str(length)] = [
                {"ids": [ids_as_text(one[0]) for one in ids], "states": [states_as_text(one[0]) for one in states]} for ids, states in rows
            ]
    return found


def ids_as_text(chunks: torch.Tensor) -> list[str]:
    """The token ids of each chunk as text; repeated ids as ``id*times``."""
    return [" ".join(_times(token, len(list(run))) for token, run in groupby(chunk)) for chunk in chunks.reshape(-1, 77).tolist()]


def states_as_text(states: torch.Tensor) -> str:
    """The layer and the positions of ``states`` (tokens, 2) or (2,), positions as ranges."""
    layers, places = (column.int().tolist() for column in states.reshape(-1, 2).T)
    assert len(set(layers)) == 1
    # position - index is constant within a range
    ranges = [[place for _, place in run] for _, run in groupby(enumerate(places), lambda pair: pair[1] - pair[0])]
    return f"layer {layers[0]}: " + " ".join(f"{one[0]}-{one[-1]}" for one in ranges)


def _times(token: int, times: int) -> str:
    return f"{token}*{times}" if times > 1 else str(token)


if __name__ == "__main__":
    print(json.dumps(_with_kohya(os.environ["KOHYA_PATH"]), indent=1))
