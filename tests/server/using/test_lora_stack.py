"""LoRA Stack equals a chain of core's loaders, and the card route serves only files that ComfyUI lists."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from safetensors.numpy import load_file, save_file

from random_checkpoints.layout import TINY as SIZE
from tests.server.comfy_server import PromptFailed, PromptRefused, Server
from tests.server.files import TINY, portrait
from tests.server.graphs import Graph, loader, node
from tests.server.loras import attention_lora, load_lora, lora_folder, sampled

ROWS: list[dict[str, Any]] = [
    {"on": True, "name": "one.safetensors", "strength": 0.8, "clip": 0.5},
    {"on": False, "name": "gone.safetensors", "strength": 1.0},
    {"on": True, "name": "two.safetensors", "strength": -0.4},
]


def stack(rows: Any) -> Graph:
    """LoRA Stack on the tiny model."""
    text = rows if isinstance(rows, str) else json.dumps(rows)
    return {"base": loader(TINY, full=False), "load": node("AnimeLoRA_LoraStack", model=["base", 0], clip=["base", 1], loras=text)}


@pytest.fixture(scope="module")
def two(server: Server) -> Server:
    """A server with two LoRAs that change the same layers differently."""
    attention_lora(lora_folder(server) / "one.safetensors", context=SIZE.text_width)
    second = attention_lora(lora_folder(server) / "two.safetensors", context=SIZE.text_width)
    turned = {key: value if key.endswith("alpha") else value[::-1].copy() for key, value in load_file(second).items()}
    save_file(turned, second, {"modelspec.trigger_phrase": "second, blue hair"})
    return server


def test_pixels_equal_those_of_chained_core_loaders(two: Server) -> None:
    ours = sampled(two, ["load", 0], ["load", 1], stack(ROWS))
    first = node("LoraLoader", model=["base", 0], clip=["base", 1], lora_name="one.safetensors", strength_model=0.8, strength_clip=0.5)
    then = node("LoraLoader", model=["one", 0], clip=["one", 1], lora_name="two.safetensors", strength_model=-0.4, strength_clip=-0.4)
    chain = {"base": loader(TINY, full=False), "one": first, "two": then}
    np.testing.assert_array_equal(ours, sampled(two, ["two", 0], ["two", 1], chain))
    assert (ours != sampled(two, ["load", 0], ["load", 1], stack(ROWS[:1]))).any(), "the second LoRA changed nothing"


def test_trigger_words_are_those_of_enabled_loras_in_order(two: Server) -> None:
    both = [{"name": "two.safetensors"}, {"name": "one.safetensors"}]
    for rows, words in ((ROWS, "myToken, blue hair, second"), (both, "second, blue hair, myToken"), ([], "")):
        outputs = two.run(stack(rows) | {"show": node("PreviewAny", source=["load", 2])})
        assert outputs["show"]["text"] == [words]


def test_sidecar_trigger_words_are_used_if_the_file_has_none(two: Server) -> None:
    path = attention_lora(lora_folder(two) / "noted.safetensors", context=SIZE.text_width)
    save_file(load_file(path), path)
    path.with_suffix(".json").write_text('{"activation text": "noted"}', encoding="utf-8")
    graph = stack([{"name": "noted.safetensors"}]) | {"show": node("PreviewAny", source=["load", 2])}
    assert two.run(graph)["show"]["text"] == ["noted"]
    path.with_suffix(".json").write_text('{"activation text": "noted again"}', encoding="utf-8")
    assert two.run(graph)["show"]["text"] == ["noted again"], "the cached result was kept"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"name": "gone.safetensors"}], "Row 1 of LoRA Stack: the LoRA 'gone.safetensors' is not in ComfyUI's list"),
        ([{"name": "one.safetensors", "strength": 101}], "outside -100 to 100"),
        ([{"name": "../loras/one.safetensors"}], "not in ComfyUI's list"),
        ("[", "cannot be read"),
    ],
)
def test_invalid_list_is_refused_before_queueing(two: Server, rows: Any, message: str) -> None:
    with pytest.raises(PromptRefused) as refused:
        two.queue(stack(rows) | {"show": node("PreviewAny", source=["load", 2])})
    details = [error["details"] for error in refused.value.errors["node_errors"]["load"]["errors"]]
    assert any(message in text for text in details), details


def test_linked_list_is_validated_when_it_runs(two: Server) -> None:
    graph = stack(ROWS) | {"text": node("PrimitiveString", value='[{"name": "two.safetensors"}]')}
    graph["load"]["inputs"]["loras"] = ["text", 0]
    assert two.run(graph | {"show": node("PreviewAny", source=["load", 2])})["show"]["text"] == ["second, blue hair"]
    graph["text"]["inputs"]["value"] = '[{"name": "gone.safetensors"}]'
    with pytest.raises(PromptFailed, match=r"gone\.safetensors"):
        two.run(graph | {"show": node("PreviewAny", source=["load", 2])})


def test_card_comes_from_the_file_and_follows_its_changes(server: Server) -> None:
    (lora_folder(server) / "a folder").mkdir(exist_ok=True)
    path = attention_lora(lora_folder(server) / "a folder" / "card.safetensors", context=SIZE.text_width)
    server.get("/models/loras")
    found = ask(server, "a folder/card.safetensors").json()
    assert (found["rank"], found["trigger_words"], found["thumbnail"]) == (2, ["myToken", "blue hair"], "")
    portrait(64, 1).save(path.with_suffix(".preview.png"))
    assert ask(server, "a folder/card.safetensors").json()["thumbnail"].startswith("data:image/jpeg;base64,")
    save_file(load_file(path), path, {"modelspec.trigger_phrase": "another"})
    assert ask(server, "a folder/card.safetensors").json()["trigger_words"] == ["another"]


def test_card_of_an_unlisted_file_is_refused(server: Server) -> None:
    outside = server.base / "models" / "outside.safetensors"
    attention_lora(outside, context=SIZE.text_width)
    (lora_folder(server) / "text.txt").write_text("secret", encoding="utf-8")
    Image.new("RGB", (8, 8)).save(lora_folder(server) / "only.png")
    for name in (
        "",
        "..",
        "../outside.safetensors",
        "%2e%2e/outside.safetensors",
        str(outside),
        "text.txt",
        "only.png",
        "a\x00b",
        "x" * 5000,
    ):
        assert ask(server, name).status_code == 404, name
    assert requests.post(f"{server.url}/animelora/lora", timeout=30).status_code in (403, 404, 405)


def test_browser_is_notified_of_the_lora_that_a_node_used(two: Server) -> None:
    two.run(load_lora("two.safetensors", strength_model=0.11) | {"show": node("PreviewAny", source=["load", 2])})
    assert {"node_id": "load", "name": "two.safetensors"} in [
        message["data"] for message in two.messages if message["type"] == "animelora.lora"
    ]


def ask(server: Server, name: str) -> requests.Response:
    """The card route's answer for a name."""
    return requests.get(f"{server.url}/animelora/lora", params={"name": name}, timeout=30)
