"""Epoch Compare renders with each LoRA that a real run saved, and Pick Epoch outputs the chosen one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from tests.server.comfy_server import PromptFailed, Server
from tests.server.files import TINY
from tests.server.graphs import Graph, loader, node, prepare, train_settings


def compared(**changes: Any) -> Graph:
    """A run of two steps that saves after each step, and its grid."""
    training = train_settings(name="epochs", checkpoint_every=1, max_steps=2, validate_every=0, learning_rate=1e-1)
    settings: dict[str, Any] = {"prompts": "a girl\na boy", "negative": "", "saved_steps": "", "lora_strengths": "1, 4", "guidance": 1.0}
    settings |= {
        "steps": 1,
        "sampler_name": "euler",
        "scheduler": "normal",
        "seed": 1,
        "width": 64,
        "height": 64,
        "add_trigger_words": True,
    }
    links: dict[str, Any] = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2], "run": "(lora input)", "lora": ["train", 0]}
    return {
        "prep": prepare(),
        "train": node("AnimeLoRA_TrainLora", dataset=["prep", 0], checkpoint=TINY, **training),
        "base": loader(TINY, full=False),
        "compare": node("AnimeLoRA_EpochCompare", **(links | settings | changes)),
        "grid": node("SaveImage", images=["compare", 0], filename_prefix="grid"),
        "cells": node("SaveImage", images=["compare", 1], filename_prefix="cell"),
    }


def test_every_saved_step_is_rendered_at_every_strength(server: Server) -> None:
    outputs = server.run(compared())
    cells = []
    for path in server.images(outputs, "cells"):
        with Image.open(path) as picture:
            cells.append(np.asarray(picture.convert("RGB")))
    assert len(cells) == 2 * 3 * 2  # prompts × (no LoRA, two saved steps) × strengths
    girl = cells[:6]
    assert np.array_equal(girl[0], girl[1]), "without the LoRA its strength changes nothing"
    assert not np.array_equal(girl[2], girl[3]), "the strength changes nothing"
    assert not np.array_equal(girl[3], girl[5]), "both rows show the same step"
    with Image.open(server.images(outputs, "grid")[0]) as grid:
        assert grid.width > 2 * 64
        assert grid.height > 2 * 3 * 64


def test_step_that_was_not_saved_is_named(server: Server) -> None:
    with pytest.raises(PromptFailed, match="Nothing was saved at step 7") as failure:
        server.run(compared(saved_steps="1, 7"))
    assert "1, 2" in failure.value.message


def picked(step: int, save_as: str = "") -> Graph:
    """The same run, using the LoRA of one of its steps."""
    return compared() | {
        "pick": node("AnimeLoRA_PickEpoch", run="(lora input)", step=step, save_as=save_as, lora=["train", 0]),
        "export": node(
            "AnimeLoRA_ExportLora",
            **{"lora_name": "(lora input)", "file_name": f"picked {step}", "format": "kohya", "dtype": "as it is", "rank": 0},
            **{name: "" for name in ("title", "author", "description", "trigger_words", "tags", "licence")},
            lora=["pick", 0],
        ),
    }


def test_picked_step_is_output_and_saved_under_a_name(server: Server) -> None:
    server.run(picked(1, "my pick"))
    assert "animelora.loras" in [message["type"] for message in server.messages], "open pages are not notified of the new LoRA"
    server.run(picked(0))
    (run,) = (server.base / "output" / "animelora" / "runs").glob("epochs-*")
    tensors = {}
    for name, path in {
        "first": next(run.glob("checkpoints/step-*1/*.safetensors")),
        "last": next(run.glob("checkpoints/step-*2/*.safetensors")),
        "kept": server.base / "models" / "loras" / "my pick.safetensors",
        "picked 1": server.base / "output" / "animelora" / "exports" / "picked 1.safetensors",
        "picked 0": server.base / "output" / "animelora" / "exports" / "picked 0.safetensors",
    }.items():
        tensors[name] = {key: value.tobytes() for key, value in load_file(path).items()}
    assert tensors["first"] != tensors["last"]
    assert tensors["kept"] == tensors["picked 1"] == tensors["first"]
    assert tensors["picked 0"] == tensors["last"]


def test_picked_step_never_replaces_another_lora(server: Server) -> None:
    other = server.base / "models" / "loras" / "taken.safetensors"
    other.write_bytes(b"another LoRA")
    with pytest.raises(PromptFailed, match="already holds another taken"):
        server.run(picked(1, "taken"))
    assert other.read_bytes() == b"another LoRA"
