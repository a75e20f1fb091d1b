"""Brackets in prompts and captions: emphasis as ComfyUI reads it, and text where text is meant."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.training_helpers import configuration, make_dataset, train_here
from trainer.core.prompt_syntax import escape, has_word, unescape, weighted_parts
from trainer.dataset import CaptionSettings, TrainingHints, open_dataset
from trainer.families import open_checkpoint
from trainer.families.sd1 import FAMILY
from trainer.families.sdxl import FAMILY as SDXL
from trainer.runs import events
from trainer.runs.run_folder import cache_folder
from trainer.training.caching.cache import Cache
from trainer.training.caching.weighted_prompts import encode_keys, prompt_key, prompt_text

pytestmark = pytest.mark.seconds

CPU = torch.device("cpu")


# what escape_important, token_weights and unescape_important of ComfyUI 0.33.0 (comfy/sd1_clip.py) give
@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("a (cat:1.3), (dog)", [("a ", 1.0), ("cat", 1.3), (", ", 1.0), ("dog", 1.1)]),
        ("((very)) big", [("very", 1.21), (" big", 1.0)]),
        ("(a (b:0.5) c:1.2) d", [("a ", 1.2), ("b", 0.5), (" c", 1.2), (" d", 1.0)]),
        (r"saber \(fate\), (x)", [("saber (fate), ", 1.0), ("x", 1.1)]),
        ("(open", [("(open", 1.0)]),
        ("close)", [("close)", 1.0)]),
        ("()", []),
        ("(:3)", [(":3", 1.1)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(a:1e-1)b(c)", [("a", 0.1), ("b", 1.0), ("c", 1.1)]),
        ("a:1.2", [("a:1.2", 1.0)]),
        (r"(saber \(fate\):1.2)", [("saber (fate)", 1.2)]),
        (")(", [(")(", 1.0)]),
    ],
)
def test_weights_are_comfyuis(prompt: str, parts: list[tuple[str, float]]) -> None:
    found = weighted_parts(prompt)
    assert [text for text, _ in found] == [text for text, _ in parts]
    assert all(math.isclose(weight, wanted) for (_, weight), (_, wanted) in zip(found, parts, strict=True))


@given(st.text(alphabet="ab ()_", min_size=1, max_size=12))
def test_an_escaped_tag_is_read_as_the_tag(tag: str) -> None:
    assert weighted_parts(escape(tag)) == [(tag, 1.0)]
    assert escape(escape(tag)) == escape(tag)
    assert unescape(escape(tag)) == tag
    assert has_word(f"x, {escape(tag)}, y", tag) or not tag.strip() or not tag[0].isalnum() or not tag[-1].isalnum()


def test_escaped_prompts_are_not_escaped_again() -> None:
    assert escape(r"saber \(fate\)") == r"saber \(fate\)"
    assert escape("(masterpiece:1.2)") == "(masterpiece:1.2)"
    assert escape("saber (fate)") == r"saber \(fate\)"


@pytest.mark.parametrize(
    ("text", "word", "there"),
    [
        ("jazz singer", "zz", False),
        ("(zz:1.2), girl", "zz", True),
        (r"1girl, saber \(fate\), solo", "saber (fate)", True),
        ("saber (fate)", r"Saber \(Fate\)", True),
        ("zz-like", "zz", True),
    ],
)
def test_words_are_found_whole_and_without_backslashes(text: str, word: str, there: bool) -> None:
    assert has_word(text, word) is there


def test_weights_move_each_token_from_the_empty_prompt(shallow_checkpoint: Path) -> None:
    encoder = FAMILY.load_text_encoder(open_checkpoint(str(shallow_checkpoint)), torch.float32, CPU)
    plain, empty = encoder.encode(["a photo of a cat", ""])
    key = prompt_key("a (photo of:1.5) a (cat)")
    (row,) = encode_keys(encoder, [key])
    expected = plain["embeds"].clone()
    for place, weight in ((2, 1.5), (3, 1.5), (5, 1.1)):  # behind the start: a, photo, of, a, cat
        expected[place] = (plain["embeds"][place] - empty["embeds"][place]) * weight + empty["embeds"][place]
    torch.testing.assert_close(row["embeds"], expected)
    assert not torch.allclose(row["embeds"], plain["embeds"], atol=1e-4)
    # together with others, each is what it is alone, and a prompt without emphasis is the caption of its text
    assert prompt_key(r"a photo of a \(cat\)") == "a photo of a (cat)" == prompt_text("a photo of a \\(cat\\)")
    both = encode_keys(encoder, ["a photo of a cat", key])
    torch.testing.assert_close(both[0]["embeds"], plain["embeds"])
    torch.testing.assert_close(both[1]["embeds"], expected)
    long = encode_keys(encoder, [prompt_key("(" + "cat " * 100 + ":1.2)")])[0]["embeds"]
    assert long.shape == expected.shape and bool(long.isfinite().all())


def test_both_encoders_of_sdxl_are_weighted_and_the_pooled_prompt_is_not(shallow_sdxl: Path) -> None:
    encoder = SDXL.load_text_encoder(open_checkpoint(str(shallow_sdxl)), torch.float32, CPU)
    plain, empty = encoder.encode(["a cat", ""])
    (row,) = encode_keys(encoder, [prompt_key("a (cat:0)")])
    expected = plain["embeds"].clone()
    expected[2] = empty["embeds"][2]
    torch.testing.assert_close(row["embeds"], expected)
    torch.testing.assert_close(row["pooled"], plain["pooled"])


def test_captions_and_validation_prompts_of_a_run(shallow_checkpoint: Path, tmp_path: Path) -> None:
    """A run with wildcards and brackets finds all that it asks for in its caches."""
    pictures = tmp_path / "pictures-4-0"
    pictures.mkdir()
    for number in range(4):
        (pictures / f"{number:02d}.txt").write_text("{red|blue} hair, saber \\(fate\\)\n1girl ||| solo, (smile:1.2)\n", encoding="utf-8")
    hints = TrainingHints(wildcards=True)
    dataset = make_dataset(tmp_path, 4, training=hints, captions=CaptionSettings())
    first = "myStyle, {red|blue} hair, saber \\(fate\\)\nmyStyle, 1girl ||| solo, (smile:1.2)"
    assert {item.caption for item in open_dataset(dataset).items} == {first}
    for text_encoder in (False, True):
        changes = {
            "sample.prompts": ["(myStyle:1.3) girl"], "sample.every_epochs": 1, "training.epochs": 1, "validation.share": 0.25,
            "network.text_encoder": text_encoder,
        }  # fmt: skip
        trained = train_here(configuration(shallow_checkpoint, dataset, tmp_path / "runs", changes))
        assert trained.status == 0
        assert {event.prompt for event in trained.told if isinstance(event, events.Sample)} == {"(myStyle:1.3) girl"}
        if not text_encoder:
            folder = cache_folder(configuration(shallow_checkpoint, dataset, tmp_path / "runs", changes))
            cache = Cache(folder, open_checkpoint(str(shallow_checkpoint)).identity(folder), FAMILY.latents)
            kinds = ("myStyle, red hair, saber (fate)", "myStyle, blue hair, saber (fate)", "myStyle, 1girl, solo, (smile:1.2)")
            known = {prompt for prompt in kinds if cache.prompt_path(prompt).is_file()}
            assert kinds[0] in known
            assert len(list((folder / "prompts").rglob("*.safetensors"))) == len(known) + 2, "the weighted prompt and the empty one"
