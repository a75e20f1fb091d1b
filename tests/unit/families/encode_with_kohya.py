"""Chunks prompts with kohya's own code and prints what it did as JSON. Run by ``test_long_prompts.py`` in its own process.

    KOHYA_PATH=sd-scripts python -m tests.unit.families.encode_with_kohya > tests/unit/families/kohya_prompts.json

``library/strategy_sd.py`` and ``strategy_sdxl.py`` are used as they are; of what they import, the logging set-up and the dataset code,
which do nothing here, are replaced. The text models are stand-ins that tell, instead of what a token means, where it was.
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

from trainer.families.base import tokenizer_folder

LENGTHS = (75, 150, 225)
LAYERS = 12
FINAL_NORM = 1000.0  # what the stand-in's final norm adds
PROMPTS = [
    "",
    "a photo of a cat",
    "cat " * 75,
    "cat " * 76,
    "cat " * 75 + "!+",  # a second chunk that begins with token 0, which pads
    "cat " * 149 + "!+",  # and one that ends in it
    ", ".join(f"tag number {number} of a long caption" for number in range(40)),
]


class Positions(torch.nn.Module):
    """A text model whose state ``layer`` of a token is (layer, row x 77 + place); ``projected``: its pooled output is the end token's."""

    def __init__(self, *, projected: bool = False) -> None:
        super().__init__()
        self.projected = projected
        self.device = torch.device("cpu")
        self.text_model = types.SimpleNamespace(final_layer_norm=lambda states: states + torch.tensor([FINAL_NORM, 0.0]))
        self.text_projection = torch.nn.Identity()
        self.text_projection.weight = torch.zeros(1)

    def forward(self, ids: torch.Tensor, output_hidden_states: bool = False, return_dict: bool = True) -> Any:
        """transformers' output classes, as the two kinds of model give them."""
        places = torch.arange(ids.numel(), dtype=torch.float32).reshape(ids.shape)
        states = tuple(torch.stack([torch.full_like(places, layer), places], dim=-1) for layer in range(LAYERS + 1))
        last = self.text_model.final_layer_norm(states[-1])
        if not self.projected:
            return BaseModelOutput(last_hidden_state=last, hidden_states=states)
        ends = (ids == 49407).int().argmax(dim=-1)
        return CLIPTextModelOutput(text_embeds=last[torch.arange(len(ids)), ends], last_hidden_state=last, hidden_states=states)


def _with_kohya(path: str) -> dict[str, Any]:
    """``{family: {length: [{"ids": per encoder, "states": per encoder, and SDXL's pooled one}]}}``, one entry per prompt."""
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
        if subfolder:  # SD 2's own pads with token 0
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
                {"ids": [told_ids(one[0]) for one in ids], "states": [told_states(one[0]) for one in states]} for ids, states in rows
            ]
    return found


def told_ids(chunks: torch.Tensor) -> list[str]:
    """Each chunk's token ids as text; one that is repeated as ``id*times``."""
    return [" ".join(_times(token, len(list(run))) for token, run in groupby(chunk)) for chunk in chunks.reshape(-1, 77).tolist()]


def told_states(states: torch.Tensor) -> str:
    """The layer and the places of ``states`` (tokens, 2) or (2,), places as ranges."""
    layers, places = (column.int().tolist() for column in states.reshape(-1, 2).T)
    assert len(set(layers)) == 1
    # a range is where place - index stays the same
    ranges = [[place for _, place in run] for _, run in groupby(enumerate(places), lambda pair: pair[1] - pair[0])]
    return f"layer {layers[0]}: " + " ".join(f"{one[0]}-{one[-1]}" for one in ranges)


def _times(token: int, times: int) -> str:
    return f"{token}*{times}" if times > 1 else str(token)


if __name__ == "__main__":
    print(json.dumps(_with_kohya(os.environ["KOHYA_PATH"]), indent=1))
