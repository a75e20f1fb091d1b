"""Long prompts and clip skip are handled like in kohya's trainer.

``kohya_prompts.json`` records what kohya's own code (sd-scripts at 48d368fa) does with the prompts in ``encode_with_kohya.py``; the command
there wrote it. Set KOHYA_PATH to a checkout to compare with that one instead.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.families.encode_with_kohya import LENGTHS, PROMPTS, Positions, ids_as_text, states_as_text
from tests.unit.families.plain_models import below, open_clip, plain_clip
from trainer.core.errors import UserError
from trainer.families import TextSettings, family_named, open_checkpoint
from trainer.families.sdxl import DualClipText
from trainer.families.stable_diffusion.clip_text import ClipText, tokenizer_folder, zero_padded

FAMILIES = ("sd1", "sd1 clip skip 2", "sd2", "sdxl")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def kohya() -> Any:
    """The results of kohya's code by family, length and prompt."""
    if not os.environ.get("KOHYA_PATH"):
        return json.loads(Path(__file__).with_name("kohya_prompts.json").read_text(encoding="utf-8"))
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-m", "tests.unit.families.encode_with_kohya"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=300, cwd=root, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def encoder(family: str, length: int) -> Any:
    """The family's encoder with text models whose states encode the position of each token."""
    from transformers import CLIPTokenizer

    def tokenizer() -> Any:
        return CLIPTokenizer.from_pretrained(str(tokenizer_folder()), local_files_only=True)

    settings = TextSettings(length, 2 if "skip" in family or family == "sdxl" else 0)
    if family == "sdxl":
        first = ClipText(tokenizer(), Positions(), settings, normed=False)
        second = ClipText(zero_padded(tokenizer()), Positions(projected=True), settings, normed=False, component="te2")
        return DualClipText(first, second)
    return ClipText(zero_padded(tokenizer()) if family == "sd2" else tokenizer(), Positions(), settings)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_chunked_and_joined_like_kohya(kohya: Any, family: str, length: int) -> None:
    text = encoder(family, length)
    rows = kohya[family][str(length)]
    for prompt, expected, tokens, row in zip(PROMPTS, rows, text.tokenize(PROMPTS), text.encode(PROMPTS), strict=True):
        assert [ids_as_text(ids) for ids in tokens.values()] == expected["ids"], prompt
        alone = text.encode([prompt])[0]  # states count positions over the whole batch, so encode one prompt alone
        states = [states_as_text(part) for part in alone["embeds"].split(2, dim=-1)]
        states += [states_as_text(alone["pooled"])] if "pooled" in alone else []
        assert states == expected["states"], prompt
        assert row["embeds"].shape == alone["embeds"].shape == (length + 2, 4 if family == "sdxl" else 2)


def test_kohya_record_covers_every_family_and_length(kohya: Any) -> None:
    assert set(kohya) == set(FAMILIES)
    assert all(set(kohya[family]) == set(map(str, LENGTHS)) for family in FAMILIES)
    assert all(len(rows) == len(PROMPTS) for lengths in kohya.values() for rows in lengths.values())


def test_clip_skip_uses_normed_output_of_an_earlier_layer(shallow_checkpoint: Path) -> None:
    from safetensors.torch import load_file

    checkpoint, sd1 = open_checkpoint(str(shallow_checkpoint)), family_named("sd1")
    prompts = ["a photo of a cat", "myAnimeStyleToken anime_face girl, high quality"]
    encoders: list[Any] = [sd1.load_text_encoder(checkpoint, torch.float32, CPU, sd1.text_settings(75, skip)) for skip in (0, 1, 2)]
    own, last, second = (torch.stack([row["embeds"] for row in one.encode(prompts)]) for one in encoders)
    assert torch.equal(own, last)
    ids = [encoders[0].tokenizer(prompt).input_ids for prompt in prompts]
    padded = torch.tensor([row + [49407] * (77 - len(row)) for row in ids])
    # without its last layer, a CLIP ends in the layer before
    weights = {name: t for name, t in load_file(str(shallow_checkpoint)).items() if ".layers.1." not in name}
    torch.testing.assert_close(second, plain_clip(weights, padded, layers=1), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(own, second, atol=0.1)


def test_unusable_clip_skip_is_refused(tiny_checkpoints: dict[str, Path]) -> None:
    for name in ("sd2", "sdxl"):
        family = family_named(name)
        assert family.text_settings(150, 2) == family.text_settings(150, 0) == TextSettings(150)
        with pytest.raises(UserError, match="layer before the last"):
            family.text_settings(75, 1)
    checkpoint, sd1 = open_checkpoint(str(tiny_checkpoints["sd1"])), family_named("sd1")
    with pytest.raises(UserError, match="clip_skip"):
        sd1.load_text_encoder(checkpoint, torch.float32, CPU, sd1.text_settings(75, 4))


def test_sdxl_pooled_output_comes_from_the_first_chunk(tiny_checkpoints: dict[str, Path]) -> None:
    from safetensors.torch import load_file

    checkpoint, sdxl = open_checkpoint(str(tiny_checkpoints["sdxl"])), family_named("sdxl")
    long = "a cat on a mat, " * 15
    row = sdxl.load_text_encoder(checkpoint, torch.float32, CPU, TextSettings(150)).encode([long])[0]
    prefix = "conditioner.embedders.1.model."
    weights = below(load_file(str(tiny_checkpoints["sdxl"])), prefix)
    text: Any = sdxl.load_text_encoder(checkpoint, torch.float32, CPU)
    ids = torch.tensor([text.second.tokenizer(long).input_ids])
    first, second = ids[:, :76], ids[:, 76:-1]
    end, start = torch.tensor([[49407]]), torch.tensor([[49406]])
    hidden, pooled = open_clip(weights, torch.cat([first, end], dim=1), 2)
    filled = torch.cat([start, second, end, torch.zeros(1, 77 - 2 - second.shape[1], dtype=torch.int64)], dim=1)
    hidden_of_second, _ = open_clip(weights, filled, 2)
    torch.testing.assert_close(row["pooled"], pooled[0], rtol=1e-4, atol=1e-5)
    expected = torch.cat([hidden[0, :76], hidden_of_second[0, 1:]])
    torch.testing.assert_close(row["embeds"][:, 64:], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("tokens", "max_tokens"), [(0, 150), (150, 150), (151, 225), (300, 300)])
def test_covering_settings_have_enough_chunks(tokens: int, max_tokens: int) -> None:
    assert TextSettings(150, clip_skip=2).covering(tokens) == TextSettings(max_tokens, clip_skip=2)
