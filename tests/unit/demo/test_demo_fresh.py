"""Portraits drawn while the UNet trains: by other processes, each once, and kept over an interruption."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from demo.drawing.portraits import BASE_STYLES, CHOICES, STYLE_WORDS, Portrait, attribute_names, random_portrait
from demo.recipe import fresh_portraits, train_unet
from demo.recipe.captions import load_tokenizer
from demo.recipe.drawn_images import FIRST_TRAINING_SEED
from demo.recipe.fresh_portraits import CHUNK, FreshPortraits, Part, draw_chunk
from demo.recipe.train_base import MANY, _further
from demo.recipe.train_unet import Growing, LatentSet, UnetSettings
from tests.unit.demo.toy import TOY
from trainer.core.files.writing import PARTIAL

pytestmark = pytest.mark.seconds

SIZE = 64


def means(pictures: Any) -> Any:
    """In place of an autoencoder: something that tells pictures apart."""
    return pictures.reshape(len(pictures), 4, -1).mean(axis=2).astype(np.float32)


def taken(source: FreshPortraits, count: int) -> list[Part]:
    """``count`` chunks; they are there within seconds."""
    parts: list[Part] = []
    deadline = time.monotonic() + 120
    while len(parts) < count and time.monotonic() < deadline:
        parts += source.take()
        time.sleep(0.05)
    return parts


def test_processes_draw_each_portrait_once_and_an_interruption_loses_none(tmp_path: Path) -> None:
    with FreshPortraits(tmp_path, 5, SIZE, means, 2) as source:
        before = taken(source, 3)
    half = tmp_path / f"{PARTIAL}half.npy"
    half.touch()
    taken_already = tmp_path / "0-pictures.npy"  # as if the end had come before it was deleted
    np.save(taken_already, draw_chunk(0, 5, SIZE))
    with FreshPortraits(tmp_path, 5, SIZE, means, 1) as source:
        assert not half.exists() and not taken_already.exists()
        after = taken(source, len(before) + 1)
    for parts in (before, after):
        seeds = [portraits[0].seed for portraits, _ in parts]
        assert len(set(seeds)) == len(seeds) and all((seed - FIRST_TRAINING_SEED - 5) % CHUNK == 0 for seed in seeds)
    known = {portraits[0].seed: latents for portraits, latents in after}
    assert len(after) > len(before) >= 3
    for portraits, latents in before:
        assert np.array_equal(known[portraits[0].seed], latents)
    first = next(latents for portraits, latents in before if portraits[0].seed == FIRST_TRAINING_SEED + 5)
    assert len(first) == CHUNK * len(BASE_STYLES) and np.array_equal(first, means(draw_chunk(0, 5, SIZE)))


def test_a_process_that_cannot_draw_ends_the_training(tmp_path: Path) -> None:
    with FreshPortraits(tmp_path, 0, -1, means, 1) as source:
        deadline = time.monotonic() + 120
        with pytest.raises(RuntimeError, match="a process that draws portraits ended with exit status 1"):
            while time.monotonic() < deadline:
                source.take()
                time.sleep(0.05)


def test_drawing_waits_for_a_slower_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh_portraits, "WAITING", 2)
    monkeypatch.setattr(fresh_portraits, "draw_chunk", lambda chunk, offset, size: np.full((1,), chunk))

    def slept(seconds: float) -> None:
        raise InterruptedError

    monkeypatch.setattr("time.sleep", slept)
    monkeypatch.setattr(fresh_portraits, "watch_parent", lambda on_stop: None)
    with pytest.raises(InterruptedError):
        fresh_portraits.main([str(tmp_path), str(SIZE), "0", "1", "3"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1-pictures.npy", "4-pictures.npy"]


def test_rows_grow_without_losing_any() -> None:
    rows = Growing(torch.arange(6).reshape(3, 2))
    for first in range(6, 26, 2):
        rows.append(torch.tensor([[first, first + 1]]))
    assert rows.rows.flatten().tolist() == list(range(26))


def test_the_unet_trains_on_what_comes_later_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_unet, "ASKED_EVERY", 2)
    monkeypatch.setattr(train_unet, "LOGGED_EVERY", 4)
    g = torch.Generator().manual_seed(0)
    empty = torch.full((77,), 49407)
    data = LatentSet(torch.full((2, 4, 8, 8), 3.0), torch.full((2, 1, 77), 11), empty)
    later = LatentSet(torch.randn(6, 4, 8, 8, generator=g), torch.full((6, 1, 77), 12), empty)
    asked: list[LatentSet | None] = [None, later]

    def more() -> LatentSet | None:
        return asked.pop(0) if asked else None

    settings = UnetSettings(minutes=60, max_steps=4, batch=4)
    train_unet.train_unet(data, tmp_path, TOY, settings, torch.device("cpu"), None, None, more, later.captions)
    assert not asked
    assert json.loads((tmp_path / "unet.jsonl").read_text().splitlines()[-1])["pictures"] == 8


def test_a_word_that_was_not_announced_is_refused(tmp_path: Path) -> None:
    empty = torch.full((77,), 49407)
    data = LatentSet(torch.zeros(2, 4, 8, 8), torch.full((2, 1, 77), 11), empty)
    later = LatentSet(torch.zeros(2, 4, 8, 8), torch.full((2, 1, 77), 12), empty)
    with pytest.raises(ValueError, match="not announced"):
        train_unet.train_unet(data, tmp_path, TOY, UnetSettings(max_steps=2, batch=2), torch.device("cpu"), None, None, lambda: later)


def test_the_words_that_are_announced_are_all_there_are() -> None:
    people = [random_portrait(i) for i in range(MANY)]
    for name in attribute_names():
        assert {getattr(person, name) for person in people} == set(CHOICES[name]), name


def test_captions_belong_to_the_latents_that_they_come_with() -> None:
    tokenizer = load_tokenizer()
    shape = (CHUNK * len(BASE_STYLES), 4, 2, 2)
    parts: list[tuple[list[Portrait], NDArray[np.float32]]] = [
        (fresh_portraits.portraits_of(chunk, 0), np.full(shape, chunk, np.float32)) for chunk in (0, 1)
    ]
    found = _further(parts, tokenizer)
    assert found is not None and _further([], tokenizer) is None
    assert found.latents[:, 0, 0, 0].tolist() == [0.0] * len(found.latents.chunk(2)[0]) + [1.0] * len(found.latents.chunk(2)[0])
    for place, part in ((0, 0), (CHUNK + 3, 0), (CHUNK * len(BASE_STYLES) + 2 * CHUNK + 5, 1)):
        portrait = parts[part][0][place % CHUNK]
        style = BASE_STYLES[place % (CHUNK * len(BASE_STYLES)) // CHUNK]
        words = " ".join(tokenizer.batch_decode(found.captions[place], skip_special_tokens=True))
        assert STYLE_WORDS[style] in words and portrait.hair_colour in words
