"""ComfyUI's own Train LoRA with the model of Load Demo Base, of which it takes a copy to modify."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from tests.server.comfy_server import Server
from tests.server.graphs import defaults, node
from trainer.lorafile import inspect_lora


def test_lora_trained_by_core_on_the_demo_base_is_read(server: Server) -> None:
    info = server.get("/object_info")
    saves = "SaveLoRA" if "SaveLoRA" in info else "SaveLoRANode"  # its name in ComfyUI 0.3.64
    settings = defaults(info["TrainLoraNode"]) | {"steps": 2, "rank": 2, "training_dtype": "fp32", "lora_dtype": "fp32"}
    graph = {
        "base": node("AnimeLoRA_LoadDemoBase", checkpoint="AnimeLoRA demo base (embedded)"),
        "latent": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "words": node("CLIPTextEncode", clip=["base", 1], text="girl"),
        "train": node("TrainLoraNode", **settings, model=["base", 0], latents=["latent", 0], positive=["words", 0]),
        "save": node(saves, prefix="loras/core", steps=2, lora=["train", info["TrainLoraNode"]["output"].index("LORA_MODEL")]),
    }
    server.run(graph)
    (made,) = Path(server.base, "output", "loras").glob("core*.safetensors")
    assert any(tensor.abs().sum() > 0 for key, tensor in load_file(made).items() if "lora_up" in key)
    found = inspect_lora(made)
    assert found.usable and sum(found.targets.values()) > 0
