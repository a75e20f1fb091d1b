"""Helpers of the nodes that work without ComfyUI: prompts, numbers, grids, fonts."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

Helper = Callable[[str], ModuleType]


@pytest.mark.parametrize(
    ("prompt", "words", "expected"),
    [
        ("girl, high quality", "myToken", "myToken, girl, high quality"),
        ("girl, high quality", "myToken, blue hair", "myToken, blue hair, girl, high quality"),
        ("a MYTOKEN girl", "myToken", "a MYTOKEN girl"),  # CLIP reads small letters only
        ("myTokens galore", "myToken", "myToken, myTokens galore"),  # part of another word does not count
        ("girl", "myToken, mytoken", "myToken, girl"),
        ("girl", "", "girl"),
        ("girl", None, "girl"),
        ("", "myToken", "myToken"),
        ("(myToken:1.2) girl", "myToken", "(myToken:1.2) girl"),
        ("girl", "c++ (style)", r"c++ \(style\), girl"),
        (r"girl, c++ \(style\)", "c++ (style)", r"girl, c++ \(style\)"),
        ("girl", r"saber \(fate\)", r"saber \(fate\), girl"),  # from Load LoRA: once is enough
        ("a jazz singer", "zz", "zz, a jazz singer"),
    ],
)
def test_missing_trigger_words_are_put_in_front(helper: Helper, prompt: str, words: str | None, expected: str) -> None:
    prompts = helper("inputs.prompts")
    assert prompts.with_trigger_words(prompt, words) == expected
    assert prompts.with_trigger_words(expected, words) == expected


def test_numbers_accept_common_separators(helper: Helper) -> None:
    read = helper("inputs.prompts").numbers
    assert read(" 0.6, 0.8;1\n1.0 ", what="strengths", low=0, high=1) == [0.6, 0.8, 1.0]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("0.6, high", "'high' in strengths is not a number"),
        ("2", "not between 0 and 1"),
        ("nan", "not between"),
        ("inf", "not between"),
        (" , ", "empty"),
    ],
)
def test_invalid_number_is_named(helper: Helper, text: str, problem: str) -> None:
    with pytest.raises(Exception, match=problem):
        helper("inputs.prompts").numbers(text, what="strengths", low=0, high=1)


def test_grid_contains_every_image_unchanged(helper: Helper) -> None:
    grid = helper("grids.draw_grid")
    generator = np.random.default_rng(0)

    def picture() -> Image.Image:
        return Image.fromarray(generator.integers(0, 255, (200, 160, 3), dtype=np.uint8))

    rows = [[picture() for _ in range(3)] for _ in range(2)]
    drawn = np.asarray(grid.draw([grid.Block("a girl", rows)], ["no LoRA", "LoRA 1"], ["guidance 1", "guidance 5", "guidance 7.5"]))
    places = []
    for row in rows:
        for cell in row:
            wanted = np.asarray(cell)
            corners = np.argwhere((drawn[:-199, :-159] == wanted[0, 0]).all(-1))
            found = [(y, x) for y, x in corners if (drawn[y : y + 200, x : x + 160] == wanted).all()]
            assert len(found) == 1
            places.append(found[0])
    assert len({y for y, _ in places}) == 2
    assert len({x for _, x in places}) == 3


def test_long_prompt_is_wrapped_to_the_width(helper: Helper) -> None:
    grid, fonts = helper("grids.draw_grid"), helper("grids.fonts")
    text = "a girl with long silver hair, " * 12 + "x" * 300
    font = fonts.font_for(text, 16)
    lines = grid.wrap_title(text, font, 400)
    assert len(lines) > 3
    assert all(font.width(line) <= 400 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def boxes(face: object, text: str) -> set[str]:
    """Characters that a font draws like a character that no font has."""
    missing = drawn(face, "\U0010ffff")
    return {letter for letter in set(text) - {" "} if drawn(face, letter) == missing}


def drawn(face: Any, letter: str) -> tuple[object, bytes]:
    """Position and pixels of a drawn character."""
    return face.getmask(letter).getbbox(), bytes(face.getmask(letter))


@pytest.mark.parametrize("text", ["Cô gái tóc bạc, mắt xanh", "sức mạnh 0,8 ăâđêôơư", "épée, naïve, Größe 0.65 · step 600"])
def test_latin_and_vietnamese_labels_have_no_missing_characters(helper: Helper, text: str) -> None:
    assert boxes(helper("grids.fonts").font_for(text, 32).face, text) == set()


@pytest.mark.parametrize("text", ["銀髪の少女、青い目 strength 0.8", "银发少女，蓝眼睛", "은발 소녀, 파란 눈", "cô gái 銀髪"])
def test_east_asian_labels_have_no_missing_characters(helper: Helper, text: str, caplog: pytest.LogCaptureFixture) -> None:
    fonts = helper("grids.fonts")
    fonts._load.cache_clear()
    face = fonts.font_for(text, 32).face
    if "no font with East Asian letters" in caplog.text:
        pytest.skip("this machine has no font with East Asian letters, and the pack said so")
    assert boxes(face, text) == set()


def test_missing_east_asian_font_is_logged(helper: Helper, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    fonts = helper("grids.fonts")
    monkeypatch.setattr(fonts, "_ALL", ("no such font.ttc",))
    for name in ("_CHINESE", "_JAPANESE", "_KOREAN"):
        monkeypatch.setattr(fonts, name, ())
    fonts._load.cache_clear()
    assert fonts.font_for("銀髪", 20).width("銀髪") > 0
    assert "install Noto Sans CJK" in caplog.text
    fonts._load.cache_clear()
