"""Lumina 2 on the canvas: a checkpoint with all models is offered, trained, and its LoRA read again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.server.comfy_server import Server
from tests.server.files import link
from tests.server.graphs import node, prepare
from trainer.lorafile import read_lora

NAME = "lumina2_style"


@pytest.mark.long  # tests/unit/training/parity trains the same model without a server
def test_checkpoint_is_trained_with_its_preset_and_makes_validation_images(server: Server, tiny_lumina2: Path) -> None:
    target = server.base / "models" / "checkpoints" / tiny_lumina2.name
    link(tiny_lumina2, target)
    try:
        short = {"max_steps": 1, "validate_every": 1, "validation_steps": 1, "precision": "fp32", "gradient_accumulation": 1, "rank": 2}
        settings = {"name": NAME, "preset": "style-lumina2", "checkpoint": target.name, "validation_prompts": "a girl", **short}
        server.run({"prep": prepare(), "train": node("AnimeLoRA_TrainLora", dataset=["prep", 0], **settings)})
    finally:
        target.unlink()
    (run,) = (server.base / "output" / "animelora" / "runs").glob(f"{NAME}-*")
    events = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    (plan,) = [event for event in events if event["event"] == "plan"]
    assert (plan["family"], plan["prediction"], plan["text_encoder"]) == ("lumina2", "flow", "")
    assert any(event["event"] == "sample" for event in events)
    weights = read_lora(server.base / "models" / "loras" / f"{NAME}.safetensors")
    assert (weights.family, len(weights.modules)) == ("lumina2", 30)
