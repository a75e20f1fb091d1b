"""Every node that uses a LoRA warns if the LoRA is for a rectified flow and the model is not sampled as one."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from random_checkpoints.layout import TINY as SIZE
from tests.server.comfy_server import Server
from tests.server.graphs import PAINT, Graph, node
from tests.server.loras import attention_lora, load_lora, lora_folder

NAME = "flow.safetensors"
WARNING = f"{NAME} was trained for a rectified flow, but this model is sampled as a diffusion. Put ModelSamplingSD3 before this node."


@pytest.fixture
def flow_lora(server: Server) -> Path:
    """A LoRA that states that its model is a rectified flow."""
    path = attention_lora(lora_folder(server) / NAME, context=SIZE.text_width)
    save_file(load_file(path), path, {"ss_base_model_version": "sd_v1", "modelspec.prediction_type": "flow"})
    return path


def as_flow(graph: Graph, model: str) -> Graph:
    """``graph`` with ModelSamplingSD3, called ``flow``, behind the node ``model``."""
    return graph | {"flow": node("ModelSamplingSD3", model=[model, 0], shift=3.0)}


def painted(model: str) -> Graph:
    """Anime Img2Img with a model."""
    inputs = {"model": [model, 0], "clip": ["base", 1], "vae": ["base", 2], "image": ["photo", 0], **PAINT, "steps": 1}
    return {
        "photo": node("LoadImage", image="photo.png"),
        "paint": node("AnimeLoRA_AnimeImg2Img", **inputs),
        "show": node("PreviewImage", images=["paint", 0]),
    }


def texts_of(server: Server, graph: Graph, name: str) -> list[str]:
    """What a node shows while the graph runs."""
    server.forget()
    before = len(server.texts)
    server.run(graph)
    return [text for node_id, text in server.texts[before:] if node_id == name]


@pytest.mark.usefixtures("flow_lora")
def test_load_lora_and_img2img_warn_where_the_model_is_not_a_flow(server: Server) -> None:
    graph = load_lora(NAME) | painted("load")
    before = len(server.log())
    (painting,) = texts_of(server, graph, "paint")
    assert painting == WARNING
    assert ("load", f"9 of 9 keys used\n{WARNING} Ignore this if such a node comes later.") in server.texts
    assert WARNING in server.log()[before:]


@pytest.mark.usefixtures("flow_lora")
def test_img2img_sees_the_sampling_that_a_node_sets_after_the_lora(server: Server) -> None:
    assert texts_of(server, as_flow(load_lora(NAME), "load") | painted("flow"), "paint") == [""]


@pytest.mark.usefixtures("flow_lora")
def test_stack_warns_for_each_lora(server: Server) -> None:
    row = f'[{{"on": true, "name": "{NAME}", "strength": 1}}]'
    stack = {"stack": node("AnimeLoRA_LoraStack", model=["base", 0], clip=["base", 1], loras=row)}
    graph = {"base": load_lora(NAME)["base"], **stack, **painted("stack")}
    assert texts_of(server, graph, "paint") == [WARNING]
    assert ("stack", f"{NAME}: 9 of 9 keys used\n{WARNING} Ignore this if such a node comes later.") in server.texts


@pytest.mark.usefixtures("flow_lora")
@pytest.mark.parametrize("is_flow", [False, True], ids=["diffusion", "flow"])
def test_style_compare_warns_while_it_renders(server: Server, is_flow: bool) -> None:
    base = {"base": load_lora(NAME)["base"]}
    models = {"model": ["flow" if is_flow else "base", 0], "clip": ["base", 1], "vae": ["base", 2], "lora_name": NAME}
    words = {"prompts": "a girl", "negative": "", "lora_strengths": "1", "guidances": "1", "img2img_strengths": "1"}
    look = {"steps": 1, "sampler_name": "euler", "scheduler": "simple", "seed": 1, "width": 64, "height": 64, "add_trigger_words": False}
    compare = node("AnimeLoRA_StyleCompare", **models, **words, **look)
    graph = (as_flow(base, "base") if is_flow else base) | {"compare": compare, "grid": node("PreviewImage", images=["compare", 0])}
    expected = "" if is_flow else f"{WARNING}\n"
    assert texts_of(server, graph, "compare") == [f"{expected}image {number} of 2" for number in (1, 2)]
