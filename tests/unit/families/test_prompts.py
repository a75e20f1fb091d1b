"""CLIP's tokens and the text encoder's output, compared with published ids and a plain implementation of CLIP."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.families.plain_models import plain_clip
from trainer.families import open_checkpoint
from trainer.families.sd1 import FAMILY
from trainer.families.stable_diffusion.clip_text import tokenizer_folder

START, END = 49406, 49407


@pytest.fixture(scope="module")
def encoder(shallow_checkpoint: Path) -> Any:
    """The tiny checkpoint's text encoder."""
    return FAMILY.load_text_encoder(open_checkpoint(str(shallow_checkpoint)), torch.float32, torch.device("cpu"))


# ids as the documentation of CLIP and of transformers shows them
@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("", []),
        ("a diagram", [320, 22697]),
        ("a dog", [320, 1929]),
        ("a cat", [320, 2368]),
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("A  Photo of\na CAT", [320, 1125, 539, 320, 2368]),
        ("hello world", [3306, 1002]),
    ],
)
def test_tokenizer_gives_published_ids(encoder: Any, prompt: str, ids: list[int]) -> None:
    assert encoder.tokenizer(prompt).input_ids == [START, *ids, END]
    assert encoder.count_tokens(prompt) == len(ids)


def bytes_to_letters() -> dict[int, str]:
    """GPT-2's visible stand-ins for bytes, which CLIP's vocabulary uses."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + index) for index, byte in enumerate(hidden)}


def byte_pairs(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding of one word, merging the best-ranked pair until none is left (Sennrich et al. 2016)."""
    letters = bytes_to_letters()
    parts = [letters[byte] for byte in word.encode("utf-8")]
    parts[-1] += "</w>"
    while len(parts) > 1:
        best = min(pairwise(parts), key=lambda pair: ranks.get(pair, 1 << 30))
        if best not in ranks:
            break
        merged: list[str] = []
        index = 0
        while index < len(parts):
            if tuple(parts[index : index + 2]) == best:
                merged.append("".join(best))
                index += 2
            else:
                merged.append(parts[index])
                index += 1
        parts = merged
    return parts


@pytest.mark.parametrize("word", ["myanimestyletoken", "xyzzyqwv", "antidisestablishmentarianism", "絵柄", "🎨", "naïve", "hatsune"])
def test_unknown_word_is_split_by_published_merges(encoder: Any, word: str) -> None:
    lines = (tokenizer_folder() / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    ranks = {(left, right): rank for rank, (left, _, right) in enumerate(line.partition(" ") for line in lines if line)}
    vocabulary: dict[str, int] = json.loads((tokenizer_folder() / "vocab.json").read_text(encoding="utf-8"))
    assert encoder.tokenizer(word).input_ids == [START, *(vocabulary[part] for part in byte_pairs(word, ranks)), END]


def test_vocabulary_has_published_size() -> None:
    vocabulary = json.loads((tokenizer_folder() / "vocab.json").read_text(encoding="utf-8"))
    assert sorted(vocabulary.values()) == list(range(49408))
    assert (vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]) == (START, END)


PROMPTS = ["", "a photo of a cat", "myAnimeStyleToken anime_face girl, high quality"]


def test_embeddings_match_plain_clip(encoder: Any, shallow_checkpoint: Path) -> None:
    rows = []
    for prompt in PROMPTS:
        ids = encoder.tokenizer(prompt).input_ids
        rows.append(ids + [END] * (77 - len(ids)))  # padded with the end token, as CLIP was used in SD 1.x
    expected = plain_clip(load_file(str(shallow_checkpoint)), torch.tensor(rows))
    given = torch.stack([condition["embeds"] for condition in encoder.encode(PROMPTS)])
    assert given.shape == (3, 77, 64)
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)


def test_embedding_does_not_depend_on_the_batch(encoder: Any) -> None:
    batch = encoder.encode(PROMPTS)
    for prompt, row in zip(PROMPTS, batch, strict=True):
        torch.testing.assert_close(encoder.encode([prompt])[0]["embeds"], row["embeds"], rtol=1e-5, atol=1e-6)


def test_long_prompt_is_truncated_at_75_tokens(encoder: Any) -> None:
    long, cut = encoder.encode(["cat " * 100, "cat " * 75])
    assert torch.equal(long["embeds"], cut["embeds"])


def test_file_without_text_model_prefix_gives_same_embeddings(encoder: Any, shallow_checkpoint: Path, tmp_path: Path) -> None:
    weights = load_file(str(shallow_checkpoint))
    short = {name.replace("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."): t for name, t in weights.items()}
    assert short.keys() != weights.keys()
    save_file(short, tmp_path / "merged.safetensors")
    other = FAMILY.load_text_encoder(open_checkpoint(str(tmp_path / "merged.safetensors")), torch.float32, torch.device("cpu"))
    for ours, theirs in zip(encoder.encode(PROMPTS), other.encode(PROMPTS), strict=True):
        assert torch.equal(ours["embeds"], theirs["embeds"])
