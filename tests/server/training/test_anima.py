"""Anima on the canvas: chosen where it lies, with its text encoder and VAE found in ComfyUI's folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from random_checkpoints.anima import DENOISER, TEXT_ENCODER, VAE
from tests.server.comfy_server import Server
from tests.server.files import link
from tests.server.graphs import node, prepare
from trainer.lorafile import read_lora
from trainer.runs import events
from trainer.runs.event_log import read_events_of

CHOSEN = "[diffusion_models] anima-base-v1.0.safetensors"


@pytest.fixture
def anima(server: Server, tiny_anima: Path) -> None:
    """The three files in the server's folders."""
    for name in (DENOISER, TEXT_ENCODER, VAE):
        target = server.base / "models" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            link(tiny_anima.parents[1] / name, target)


@pytest.mark.usefixtures("anima")
def test_model_in_three_files_is_trained(server: Server) -> None:
    short = {"max_steps": 1, "validate_every": 1, "validation_steps": 1, "precision": "fp32", "gradient_accumulation": 1, "rank": 2}
    train = node("AnimeLoRA_TrainLora", dataset=["prep", 0], checkpoint=CHOSEN, name="anima_style", preset="style-anima", **short)
    server.run({"prep": prepare(), "train": train})
    (run,) = (server.base / "output" / "animelora" / "runs").glob("anima_style-*")
    plans = read_events_of(run / "events.jsonl", events.Plan)
    assert [(plan.family, plan.text_encoder, plan.vae) for plan in plans] == [("anima", Path(TEXT_ENCODER).name, Path(VAE).name)]
    assert read_lora(server.base / "models" / "loras" / "anima_style.safetensors").family == "anima"
