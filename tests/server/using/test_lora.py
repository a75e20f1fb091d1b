"""Load LoRA loads as core's loader does and reports what core only logs. Style Compare uses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from random_checkpoints.layout import TINY as SIZE
from tests.server.comfy_server import PromptFailed, Server
from tests.server.files import TINY
from tests.server.graphs import loader, node
from tests.server.loras import attention_lora, load_lora, lora_folder, sampled
from trainer import lorafile
from trainer.core.counting import plural


def test_pixels_equal_those_of_the_core_loader(server: Server) -> None:
    attention_lora(lora_folder(server) / "fits.safetensors", context=SIZE.text_width)
    ours = sampled(server, ["load", 0], ["load", 1], load_lora("fits.safetensors"))
    inputs = {"model": ["base", 0], "clip": ["base", 1], "lora_name": "fits.safetensors", "strength_model": 0.8, "strength_clip": 0.5}
    core = {"base": loader(TINY, full=False), "load": node("LoraLoader", **inputs)}
    np.testing.assert_array_equal(ours, sampled(server, ["load", 0], ["load", 1], core))
    without = sampled(server, ["base", 0], ["base", 1], {"base": loader(TINY, full=False)})
    assert (ours != without).any(), "the LoRA changed nothing"


def test_trigger_words_come_from_the_file_and_keys_are_counted(server: Server) -> None:
    attention_lora(lora_folder(server) / "words.safetensors", context=SIZE.text_width)
    outputs = server.run(load_lora("words.safetensors") | {"show": node("PreviewAny", source=["load", 2])})
    assert outputs["show"]["text"] == ["myToken, blue hair"]
    assert ("load", "9 of 9 keys used") in server.texts


def test_brackets_of_trigger_words_reach_clip_as_brackets(server: Server) -> None:
    path = attention_lora(lora_folder(server) / "brackets.safetensors", context=SIZE.text_width)
    save_file(load_file(path), path, {"modelspec.trigger_phrase": "saber (fate), blue hair"})
    outputs = server.run(load_lora("brackets.safetensors") | {"show": node("PreviewAny", source=["load", 2])})
    assert outputs["show"]["text"] == [r"saber \(fate\), blue hair"]


def test_unknown_keys_are_listed_and_the_rest_is_used(server: Server) -> None:
    path = attention_lora(lora_folder(server) / "partly.safetensors", context=SIZE.text_width)
    save_file(load_file(path) | {"some_other_layer.lora_up.weight": np.ones((4, 2), np.float16)}, path)
    server.run(load_lora("partly.safetensors") | {"show": node("PreviewAny", source=["load", 2])})
    assert ("load", "9 of 10 keys used; 1 unknown: some_other_layer.lora_up.weight") in server.texts


@pytest.mark.parametrize(("context", "family"), [(1024, "Stable Diffusion 2"), (2048, "Stable Diffusion XL")])
def test_lora_for_another_family_is_refused_by_name(server: Server, context: int, family: str) -> None:
    attention_lora(lora_folder(server) / f"family{context}.safetensors", context=context)
    with pytest.raises(PromptFailed, match="does not fit this model") as failure:
        server.run(load_lora(f"family{context}.safetensors") | {"show": node("PreviewAny", source=["load", 2])})
    assert family in failure.value.message
    assert "choose another LoRA" in failure.value.message


def one_layer(kind: str, width: int, context: int) -> dict[str, np.ndarray[Any, Any]]:
    """Tensors of another algorithm than LoRA for the text keys of a cross-attention, without the pack's code."""
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    outputs = width * context // SIZE.text_width  # these two do not depend on the number of inputs
    kinds: dict[str, dict[str, tuple[int, ...]]] = {
        "lokr": {"lokr_w1": (4, 4), "lokr_w2": (width // 4, context // 4)},
        "lokr of four": {"lokr_w1_a": (4, 1), "lokr_w1_b": (1, 4), "lokr_w2_a": (width // 4, 2), "lokr_w2_b": (2, context // 4)},
        "diff": {"diff": (width, context)},
        "set_weight": {"set_weight": (width, context)},
        "dora": {"lora_up.weight": (width, 2), "lora_down.weight": (2, SIZE.text_width), "dora_scale": (1, context)},
        "glora": {"a1.weight": (context, 2), "a2.weight": (2, context), "b1.weight": (width, 2), "b2.weight": (2, context)},
        "older glora": {"a1.weight": (2, context), "a2.weight": (context, 2), "b1.weight": (2, context), "b2.weight": (width, 2)},
        "oft": {"oft_blocks": (4, outputs // 4, outputs // 4), "alpha": ()},
        "boft": {"oft_blocks": (2, 4, outputs // 4, outputs // 4), "alpha": ()},
    }
    return {f"{key}.{suffix}": np.full(shape, 0.1, np.float16) for suffix, shape in kinds[kind].items()}


@pytest.mark.parametrize("kind", ["lokr", "lokr of four", "diff", "set_weight", "dora", "glora", "older glora", "oft", "boft"])
def test_lora_of_any_algorithm_for_another_model_is_refused(server: Server, kind: str) -> None:
    """ComfyUI only logs that the shapes differ, and ignores these tensors."""
    path = lora_folder(server) / f"{kind}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    graph = load_lora(path.name) | {"show": node("PreviewAny", source=["load", 2])}
    save_file(one_layer(kind, SIZE.unet[0], 2 * SIZE.text_width), path, {"ss_base_model_version": "sdxl_base_v1-0"})
    with pytest.raises(
        PromptFailed, match=r"does not fit this model\.\nLoad the kind .*\nWhy: 1 of 1 layers have another shape"
    ) as failure:
        server.run(graph)
    assert "made for Stable Diffusion XL" in failure.value.message
    tensors = one_layer(kind, SIZE.unet[0], SIZE.text_width)
    save_file(tensors, path)
    server.run(graph)
    assert ("load", f"{len(tensors)} of {plural(len(tensors), 'key')} used") in server.texts


def test_lora_without_keys_of_the_model_is_refused(server: Server) -> None:
    attention_lora(lora_folder(server) / "foreign.safetensors", context=SIZE.text_width, prefix="lora_transformer_double_blocks_0")
    with pytest.raises(PromptFailed, match="does not fit this model"):
        server.run(load_lora("foreign.safetensors") | {"show": node("PreviewAny", source=["load", 2])})


def test_damaged_lora_is_refused_with_a_message(server: Server) -> None:
    (lora_folder(server) / "damaged.safetensors").write_bytes(b"\xff" * 400)
    with pytest.raises(PromptFailed, match=r"damaged\.safetensors"):
        server.run(load_lora("damaged.safetensors") | {"show": node("PreviewAny", source=["load", 2])})


def test_missing_lora_is_reported(server: Server) -> None:
    with pytest.raises(PromptFailed, match="No LoRA was chosen"):
        server.run(load_lora("(lora input)") | {"show": node("PreviewAny", source=["load", 2])})


@pytest.mark.parametrize("with_image", [False, True], ids=["text to image", "image to image"])
def test_style_compare_renders_every_combination(server: Server, with_image: bool) -> None:
    attention_lora(lora_folder(server) / "compare.safetensors", context=SIZE.text_width)
    photo = {"photo": node("LoadImage", image="photo.png")} if with_image else {}
    optional = {"image": ["photo", 0]} if with_image else {}
    compare = node(
        "AnimeLoRA_StyleCompare",
        **{"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2], "lora_name": "compare.safetensors"},
        **{"prompts": "a girl\na boy", "negative": "", "lora_strengths": "0.5, 1", "guidances": "1, 5"},
        **{"img2img_strengths": "0.65, 0.8", "steps": 1, "sampler_name": "euler", "scheduler": "normal", "seed": 1},
        **{"width": 64, "height": 64, "add_trigger_words": True, **optional},
    )
    outputs = server.run(
        {
            "base": loader(TINY, full=False),
            **photo,
            "compare": compare,
            "grid": node("SaveImage", images=["compare", 0], filename_prefix="grid"),
            "cells": node("SaveImage", images=["compare", 1], filename_prefix="cell"),
        }
    )
    columns = 4 if with_image else 2  # two guidances, and with a photo two strengths
    cells = server.images(outputs, "cells")
    assert len(cells) == 2 * 3 * columns  # prompts × (no LoRA, two strengths) × columns
    side = 72 if with_image else 64
    with Image.open(server.images(outputs, "grid")[0]) as grid, Image.open(cells[0]) as cell:
        assert cell.size == (side, side)
        assert grid.width > (columns + with_image) * side
        assert grid.height > 2 * 3 * side
        assert contains(np.asarray(grid.convert("RGB")), np.asarray(cell.convert("RGB"))), "the first picture is not in the grid"


def contains(whole: np.ndarray[Any, Any], part: np.ndarray[Any, Any]) -> bool:
    """Whether ``whole`` contains ``part``, pixel by pixel."""
    height, width = part.shape[:2]
    corners = np.argwhere((whole[: whole.shape[0] - height + 1, : whole.shape[1] - width + 1] == part[0, 0]).all(-1))
    return any((whole[y : y + height, x : x + width] == part).all() for y, x in corners)


@pytest.mark.parametrize("form", ["kohya", "diffusers", "peft", "comfyui"])
def test_exported_lora_gives_the_same_image(server: Server, form: str) -> None:
    attention_lora(lora_folder(server) / "original.safetensors", context=SIZE.text_width)
    texts = {"title": "A title", "author": "", "description": "", "trigger_words": "newWord", "tags": "", "licence": ""}
    export = node(
        "AnimeLoRA_ExportLora", lora_name="original.safetensors", file_name=f"as {form}", format=form, dtype="fp32", rank=0, **texts
    )
    outputs = server.run({"export": export})
    assert "3 layers" in outputs["export"]["text"][0]
    exported = server.base / "output" / "animelora" / "exports" / f"as {form}.safetensors"
    with safe_open(exported, framework="numpy") as file:
        assert file.metadata()["modelspec.title"] == "A title"
        assert file.metadata()["modelspec.trigger_phrase"] == "newWord"
    graph = load_lora("(lora input)", lora=["export", 0]) | {"export": export}
    original = sampled(server, ["load", 0], ["load", 1], load_lora("original.safetensors"))
    again = sampled(server, ["load", 0], ["load", 1], graph)
    assert np.abs(original.astype(int) - again.astype(int)).max() <= 1  # a folded alpha multiplies in another order


def test_export_never_replaces_its_source(server: Server) -> None:
    attention_lora(lora_folder(server) / "mine.safetensors", context=SIZE.text_width)
    before = (lora_folder(server) / "mine.safetensors").read_bytes()
    texts = {"title": "", "author": "", "description": "", "trigger_words": "", "tags": "", "licence": ""}
    settings = {"format": "kohya", "dtype": "as it is", "rank": 1, **texts}
    server.run({"export": node("AnimeLoRA_ExportLora", lora_name="mine.safetensors", file_name="../../../models/loras/mine", **settings)})
    assert (lora_folder(server) / "mine.safetensors").read_bytes() == before


def test_overwritten_lora_is_compared_and_exported_again(server: Server) -> None:
    path = attention_lora(lora_folder(server) / "overwritten.safetensors", context=SIZE.text_width)
    texts = {"title": "", "author": "", "description": "", "trigger_words": "", "tags": "", "licence": ""}
    form = {"file_name": "of overwritten", "format": "kohya", "dtype": "as it is", "rank": 0}
    models = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2]}
    words = {"prompts": "a girl", "negative": "", "lora_strengths": "1", "guidances": "1", "img2img_strengths": "1"}
    look = {"steps": 1, "sampler_name": "euler", "scheduler": "normal", "seed": 1, "width": 64, "height": 64, "add_trigger_words": False}
    graph = {
        "base": loader(TINY, full=False),
        "compare": node("AnimeLoRA_StyleCompare", lora_name=path.name, **models, **words, **look),
        "grid": node("PreviewImage", images=["compare", 0]),
        "export": node("AnimeLoRA_ExportLora", lora_name=path.name, **form, **texts),
    }
    assert {"compare", "export"} <= server.executed(graph)
    assert not {"compare", "export"} & server.executed(graph)
    save_file({key: np.asarray(value * 2) for key, value in load_file(path).items()}, path, {"ss_base_model_version": "sd_v1"})
    assert {"compare", "export"} <= server.executed(graph)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not show which files a process has mapped")
@pytest.mark.parametrize("names", ["kohya", "diffusers"])
def test_loaded_lora_file_is_closed(server: Server, names: str) -> None:
    """Windows cannot replace a file that a process has mapped, and tensors of a mapped file keep it mapped."""
    path = attention_lora(lora_folder(server) / f"replaced {names}.safetensors", context=SIZE.text_width)
    if names == "diffusers":  # which ComfyUI does not read
        weights = lorafile.read_lora(path)
        lorafile.write_lora(path, lorafile.convert(weights, "diffusers", None))
    attention_lora(lora_folder(server) / "held by core.safetensors", context=SIZE.text_width)
    graph = load_lora(path.name)
    core = node("LoraLoader", model=["load", 0], clip=["load", 1], lora_name="held by core.safetensors", strength_model=1, strength_clip=1)
    sampled(server, ["core", 0], ["core", 1], graph | {"core": core})  # the patched models stay in ComfyUI's cache
    maps = Path(f"/proc/{server.process.pid}/maps").read_text(encoding="utf-8", errors="replace")
    assert "held by core.safetensors" in maps, "core's loader maps nothing, so this test proves nothing"
    assert path.name not in maps
