"""The order of images and the tokens of prompts beside kohya's, as ``tests/tools/record_kohya.py`` recorded them from its own code."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.dataset.loading.batch_order import epoch_batches, steps_per_epoch
from trainer.families import TextSettings
from trainer.families.stable_diffusion import clip_text
from trainer.families.stable_diffusion.clip_text import tokenizer_folder

DATA = Path(__file__).parent / "data"
ORDERS: list[dict[str, Any]] = json.loads((DATA / "kohya_order.json").read_text(encoding="utf-8"))
TOKENS: dict[str, Any] = json.loads((DATA / "kohya_tokens.json").read_text(encoding="utf-8"))

Batches = list[list[str]]


def images(recorded: dict[str, Any]) -> list[tuple[str, tuple[int, int], int]]:
    """Name, size and repeats of every picture of a recorded dataset."""
    folders = enumerate(recorded["images"])
    return [(f"{index}-{n}", tuple(f["size"]), f["repeats"]) for index, f in folders for n in range(f["count"])]


def ours(recorded: dict[str, Any], epoch: int, seed: int = 7) -> Batches:
    """The batches that the trainer makes of the same pictures."""
    names, sizes, repeats = zip(*images(recorded), strict=True)
    batches = epoch_batches(sizes, repeats, recorded["batch_size"], seed=seed, epoch=epoch)
    return [[names[slot.item] for slot in batch] for batch in batches]


def shape(recorded: dict[str, Any], batches: Batches) -> Counter[tuple[tuple[int, int], int]]:
    """How many batches there are of each size of pictures and each number of them."""
    sizes = {name: size for name, size, _ in images(recorded)}
    found = Counter[tuple[tuple[int, int], int]]()
    for batch in batches:
        (size,) = {sizes[name] for name in batch}  # no batch mixes buckets
        found[size, len(batch)] += 1
    return found


@pytest.mark.parametrize("recorded", ORDERS, ids=lambda recorded: f"{len(recorded['images'])} sizes by {recorded['batch_size']}")
def test_an_epoch_has_kohya_s_batches_in_another_order(recorded: dict[str, Any]) -> None:
    """The same pictures as often, the same number of batches of each bucket and the same remainders. The order is another draw:
    kohya seeds with seed + epoch, so that one run's second epoch is the next seed's first; ours with a hash of both."""
    _, sizes, repeats = zip(*images(recorded), strict=True)
    for epoch, theirs in enumerate(recorded["epochs"]):
        batches = ours(recorded, epoch)
        assert shape(recorded, batches) == shape(recorded, theirs)
        assert Counter(name for batch in batches for name in batch) == Counter(name for batch in theirs for name in batch)
        assert steps_per_epoch(sizes, repeats, recorded["batch_size"], 1) == len(theirs)


def test_every_epoch_is_shuffled_like_kohyas() -> None:
    recorded = ORDERS[3]
    for epochs in (recorded["epochs"], [ours(recorded, epoch) for epoch in range(3)]):
        assert len({json.dumps(batches) for batches in epochs}) == 3
        # the members of a bucket's batches change too, not only the order of the batches
        assert len({json.dumps(sorted(sorted(batch) for batch in batches)) for batches in epochs}) == 3
    assert ours(recorded, 1, seed=7) != ours(recorded, 0, seed=8)


def tokenizer_that_pads(padding: str) -> Any:
    """CLIP's tokenizer. ``end``: as SD 1.x and SDXL's first encoder are fed; ``zero``: as SD 2.x and SDXL's second are."""
    from transformers import CLIPTokenizer

    tokenizer: Any = CLIPTokenizer.from_pretrained(str(tokenizer_folder()), local_files_only=True)
    return clip_text.zero_padded(tokenizer) if padding == "zero" else tokenizer


@pytest.mark.parametrize("length", [75, 150, 225])
@pytest.mark.parametrize("padding", ["end", "zero"])
def test_a_prompt_s_tokens_are_kohya_s(padding: str, length: Any) -> None:
    """(kohya's SD 2.x reads "!" as padding, because the tokenizer file it downloads says so; ours reads it as text everywhere, as its
    SDXL and ComfyUI do.)"""
    encoder = clip_text.ClipText(tokenizer_that_pads(padding), None, TextSettings(max_tokens=length))
    for prompt, expected in zip(TOKENS["prompts"], TOKENS["pieces"][padding][str(length)], strict=True):
        assert encoder.tokenize([prompt])[0]["te1"].tolist() == expected, prompt


@pytest.mark.parametrize("length", [75, 150, 225])
def test_the_unet_gets_kohya_s_choice_of_the_pieces_outputs(length: int) -> None:
    places = torch.arange(length // 75 * 77, dtype=torch.float32).reshape(1, -1, 77, 1)
    assert clip_text.join_chunks(places).flatten().int().tolist() == TOKENS["joined"][str(length)]
