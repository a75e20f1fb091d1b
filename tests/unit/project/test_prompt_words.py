"""The card's trigger words in the browser follow the same rules as the nodes'."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from trainer.core.prompt_syntax import escape, has_word

MODULE = Path(__file__).resolve().parents[3] / "web" / "lora" / "prompt_words.js"
KNOWN = [
    ("a jazz singer", "zz"), (r"1girl, saber \(fate\)", "saber (fate)"), ("SABER (fate)", "saber (fate)"), ("x", "(word:1.2)"),
    ("ミクのうた", "ミク"), ("ミク、うた", "ミク"), ("c++", "c"), ("a.b", "a.b"), ("", "zz"), ("naïve", "na"), ("zz-like", "zz"),
]  # fmt: skip


def in_the_browser(code: str) -> object:
    """The JSON that ``code`` prints, run as a module beside the card's."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("NOT CHECKED: there is no Node.js to run the browser's code")
    script = f"import {{ forPrompt, hasWord, withWords }} from {json.dumps(MODULE.as_uri())};\n{code}"
    command = [node, "--input-type=module", "-e", script]
    return json.loads(subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout)


def test_words_are_escaped_and_found_as_by_the_nodes() -> None:
    drawn = random.Random(0)
    pairs = KNOWN + [("".join(drawn.choices("ab ()\\:1.,_é", k=12)), "".join(drawn.choices("ab()\\:1", k=3))) for _ in range(3000)]
    results = f"{json.dumps(pairs)}.map(([text, word]) => [forPrompt(word), hasWord(text, word)])"
    found = in_the_browser(f"console.log(JSON.stringify({results}))")
    assert found == [[escape(word), has_word(text, word)] for text, word in pairs]


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("a jazz singer", ["zz"], "zz, a jazz singer"),
        ("", ["saber (fate)"], r"saber \(fate\)"),
        (r"saber \(fate\), solo", ["saber (fate)", "blue hair"], r"blue hair, saber \(fate\), solo"),
        ("zz, girl", ["ZZ"], "zz, girl"),
        ("girl", ["zz", "zz"], "zz, girl"),
    ],
)
def test_only_missing_words_are_inserted(text: str, words: list[str], expected: str) -> None:
    assert in_the_browser(f"console.log(JSON.stringify(withWords({json.dumps(text)}, {json.dumps(words)})))") == expected
