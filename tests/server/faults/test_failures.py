"""Failures give a message with advice, write nothing outside their folders, and leave the server running."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.server.comfy_server import PromptFailed, PromptRefused, Server
from tests.server.files import TINY
from tests.server.graphs import Graph, defaults, loader, node, prepare, train_settings


def failure(server: Server, graph: Graph) -> PromptFailed:
    """The failure of a graph. The server must still work afterwards."""
    with pytest.raises(PromptFailed) as caught:
        server.run(graph)
    assert "Traceback" not in caught.value.message
    server.run({"base": loader(TINY, full=False), "show": node("PreviewAny", source=["base", 1])})
    return caught.value


def train(checkpoint: str = TINY, **changes: Any) -> Graph:
    """Dataset Prep and Train LoRA."""
    training = node("AnimeLoRA_TrainLora", dataset=["prep", 0], checkpoint=checkpoint, **train_settings(**changes))
    return {"prep": prepare(), "train": training}


def tree(folder: Path) -> set[str]:
    """Every path below a folder, except the server's own files."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "animelora" not in path.parts}


# ComfyUI 0.3.64 does not validate menu values when it queues, so the node itself refuses them
REFUSED = (PromptRefused, PromptFailed)


def test_folder_without_images_is_refused(server: Server) -> None:
    (server.base / "input" / "empty").mkdir(exist_ok=True)
    (server.base / "input" / "empty" / "readme.txt").write_text("no picture", encoding="utf-8")
    error = failure(server, {"prep": prepare("empty")})
    assert error.node == "AnimeLoRA_DatasetPrep"
    assert "\n" in error.message, "no hint"


@pytest.mark.parametrize("folder", ["../../..", "/etc", "portraits/../..", "nul\0byte", "not there"])
def test_folder_outside_the_menu_is_refused(server: Server, folder: str) -> None:
    with pytest.raises(REFUSED, match="folder"):
        server.run({"prep": prepare(folder)})


def test_link_out_of_the_input_folder_is_not_listed(server: Server) -> None:
    outside = server.base.parent / "outside"
    outside.mkdir(exist_ok=True)
    try:
        (server.base / "input" / "way out").symlink_to(outside, target_is_directory=True)
    except OSError:
        pytest.skip("links need a right that this user lacks")
    with pytest.raises(REFUSED, match="folder"):
        server.run({"prep": prepare("way out")})


def test_folder_in_extra_model_paths_is_listed_and_used(server: Server) -> None:
    outputs = server.run({"prep": prepare("[datasets] my pictures/cats", trigger_word="registered")})
    assert "1 image" in outputs["prep"]["text"][0]


def test_missing_folder_and_images_are_refused(server: Server) -> None:
    assert "There are no images" in failure(server, {"prep": prepare("(images input)")}).message


def test_captions_that_do_not_match_the_images_are_refused(server: Server) -> None:
    graph = {
        "photo": node("LoadImage", image="photo.png"),
        "photos": node("RepeatImageBatch", image=["photo", 0], amount=3),
        "words": node("PrimitiveStringMultiline", value="one\ntwo"),
        "prep": prepare("(images input)") | {},
    }
    graph["prep"]["inputs"] |= {"images": ["photos", 0], "captions": ["words", 0]}
    assert "3 images but 2 captions" in failure(server, graph).message


def test_names_from_widgets_stay_inside_their_folders(server: Server) -> None:
    before = tree(server.base)
    graph = {"prep": prepare(trigger_word="../../evil", class_description="/etc/passwd")}
    graph["train"] = node(
        "AnimeLoRA_TrainLora",
        dataset=["prep", 0],
        checkpoint=TINY,
        **train_settings(name="../../../evil lora", max_steps=1, validate_every=0),
    )
    server.run(graph)
    new = tree(server.base) - before
    assert all(Path(path).parts[:2] == ("models", "loras") and len(Path(path).parts) == 3 for path in new if "evil" in path), new
    assert any("evil" in path for path in new)
    assert not list(server.base.parent.glob("*evil*"))


@pytest.mark.parametrize("kind", ["truncated", "text"])
def test_broken_checkpoint_is_named(server: Server, kind: str) -> None:
    checkpoints = server.base / "models" / "checkpoints"
    whole = (checkpoints / TINY).read_bytes()
    name = f"{kind}.safetensors"
    (checkpoints / name).write_bytes(whole[: len(whole) // 2] if kind == "truncated" else b"not a checkpoint at all, but a text")
    assert name in failure(server, train(name)).message
    assert name in failure(server, {"base": loader(name, full=False), "show": node("PreviewAny", source=["base", 1])}).message


def test_foreign_object_in_the_dataset_socket_is_refused(server: Server) -> None:
    graph = {"words": node("PrimitiveString", value="x"), "train": train()["train"]}
    graph["train"]["inputs"]["dataset"] = ["words", 0]
    with pytest.raises(PromptRefused, match="return_type_mismatch"):
        server.run(graph)


@pytest.mark.parametrize(
    ("widget", "value"), [("rank", 0), ("epochs", -1), ("learning_rate", 1e9), ("precision", "fp8"), ("batch_size", "many")]
)
def test_out_of_range_values_are_refused(server: Server, widget: str, value: Any) -> None:
    with pytest.raises(REFUSED, match=widget):
        server.run(train(**{widget: value}))


def test_options_reach_the_run_and_are_validated_with_it(server: Server) -> None:
    graph = train()
    graph["train"]["inputs"]["options"] = ["options", 0]
    values = {"optimizer": "adamw", "weight_decay": 0.0, "max_grad_norm": 1.0, "lora_plus_ratio": 1.0, "min_snr_gamma": 5.0, "loss": "l2"}
    noise = {"noise_offset": 0.0, "multires_iterations": 0, "input_perturbation": 0.0, "timestep_sampling": "uniform"}
    pictures = {"validation_negative": "", "validation_seed": 1, "validation_width": 0, "validation_height": 0}
    rest = {"keep_checkpoints": 0, "timestep_min": 900, "timestep_max": 100}
    graph["options"] = node("AnimeLoRA_TrainOptions", **values, **noise, **pictures, **rest)
    error = failure(server, graph)
    assert error.node == "AnimeLoRA_TrainLora"
    assert "timestep_min 900 is not below timestep_max 100" in error.message


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")
def test_killed_child_is_reported_and_leaves_no_process(server: Server) -> None:
    graph = train(name="killed", max_steps=0, epochs=300, validate_every=0)
    seen = len(server.messages)
    prompt = server.queue(graph)
    end = time.monotonic() + 900
    while not any(m["type"] == "animelora.train" and m["data"].get("step", 0) >= 4 for m in server.messages[seen:]):
        assert time.monotonic() < end, server.log()[-3000:]
        time.sleep(0.05)
    for child in server.children():
        os.kill(child.pid, signal.SIGKILL)
    errors = [data for kind, data in server.wait(prompt)["status"]["messages"] if kind == "execution_error"]
    assert len(errors) == 1
    assert "ended without a result" in errors[0]["exception_message"]
    assert not server.children()


@pytest.mark.parametrize(
    ("kind", "inputs", "named"),
    [
        ("LoadLora", {"model": 5, "clip": ["base", 1]}, "model input got int"),
        ("LoadLora", {"model": ["base", 0], "clip": "words"}, "clip input got str"),
        ("LoadLora", {"model": ["base", 0], "clip": ["base", 1], "lora": 1}, "LoRA input got int"),
        ("TrainLora", {"dataset": 5, "checkpoint": TINY, "name": "wrong"}, "dataset input got int"),
        ("ExportLora", {"thumbnail": 7}, "thumbnail input got int"),
        ("DatasetPrep", {"images": 1.5}, "images input got float"),
        ("MachineOptions", {"options": 3}, "options input got int"),
    ],
)
def test_number_in_a_socket_of_another_type_is_named(server: Server, kind: str, inputs: dict[str, Any], named: str) -> None:
    described = server.get(f"/object_info/AnimeLoRA_{kind}")[f"AnimeLoRA_{kind}"]
    values = {**defaults(described), **inputs}
    graph = {
        "base": loader(TINY, full=False),
        "tried": node(f"AnimeLoRA_{kind}", **values),
        "show": node("PreviewAny", source=["tried", 0]),
    }
    error = failure(server, graph)
    assert error.node == f"AnimeLoRA_{kind}"
    assert named in error.message
    assert "Connect " in error.message


def test_chained_options_and_omitted_widgets_reach_the_run(server: Server) -> None:
    short = {"name": "chained", "epochs": 1, "max_steps": 1, "rank": 4, "validate_every": 0, "precision": "fp32"}
    parts = {"block_ranks": "mid_block = 0\nup_blocks.1: 2", "train_text_encoder": True, "max_tokens": 150}
    run = server.run(
        {
            "prep": prepare(),
            "machine": node("AnimeLoRA_MachineOptions", tensorboard=False),
            "learning": node("AnimeLoRA_LearningOptions", beta1=0.8, options=["machine", 0]),
            "network": node("AnimeLoRA_NetworkOptions", options=["learning", 0], **parts),
            "train": node("AnimeLoRA_TrainLora", dataset=["prep", 0], checkpoint=TINY, options=["network", 0], **short),
        }
    )
    assert run is not None
    (config,) = (server.base / "output" / "animelora" / "runs").glob("chained-*/config.json")
    kept = json.loads(config.read_text(encoding="utf-8"))
    assert kept["network"]["block_ranks"] == {"mid_block": 0, "up_blocks.1": 2}
    assert (kept["optimizer"]["beta1"], kept["output"]["tensorboard"], kept["network"]["rank"]) == (0.8, False, 4)
    assert (kept["network"]["text_encoder"], kept["training"]["max_tokens"], kept["optimizer"]["text_encoder_lr"]) == (True, 150, "auto")
    assert kept["training"]["gradient_accumulation"] == 2, "an omitted widget takes the trainer's default"


def test_unknown_part_of_a_checkpoint_is_named(server: Server) -> None:
    graph = train()
    graph["train"]["inputs"]["options"] = ["options", 0]
    graph["options"] = node("AnimeLoRA_NetworkOptions", block_ranks="the middle")
    assert "'the middle' in block_ranks is not understood" in failure(server, graph).message
    graph["options"] = node("AnimeLoRA_NetworkOptions", block_ranks="centre = 4")
    assert "Network Options → block ranks names centre, which this model does not have" in failure(server, graph).message


def test_error_of_the_training_process_names_widgets_in_the_dialog_and_in_the_history(server: Server) -> None:
    message = failure(server, train(name="half on a cpu", precision="fp16", max_steps=1, validate_every=0)).message
    assert "fp16 training needs a GPU.\nSet Train LoRA → precision to auto, bf16 or fp32." in message
    (run,) = (server.base / "output" / "animelora" / "runs").glob("half on a cpu-*")
    ending = server.get(f"/animelora/runs/{run.name}")["ending"]
    assert (ending["event"], ending["hint"]) == ("error", "Set Train LoRA → precision to auto, bf16 or fp32.")
    logged = (run / "events.jsonl").read_text(encoding="utf-8")
    assert "Set training.precision to auto, bf16 or fp32." in logged and '{"setting": "training.precision"}' in logged
