"""Adapting a template so that it runs quickly and without downloads: the demo base, small sizes, few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.browser.frontend import Frontend
from tests.server.graphs import seed_of
from tests.tools.small_controlnet import BASE, empty, original_names
from tests.tools.workflows.parts import DEMO_BASE, LORA_FILE
from trainer.families import BaseCheckpoint
from trainer.lorafile import kohya_unet_key
from trainer.lorafile.naming.unet_names import UNetLayout, ldm_to_diffusers

_UNET = "model.diffusion_model."
_LAYOUT = UNetLayout(layers=1, attention=(False, True, False))

APP = "9 Train in App mode"
# Whether an image is shown large whose address contains a text.
LARGE_IMAGE = """(address) => [...document.images].some((image) => {
  const { width, height } = image.getBoundingClientRect();
  return image.src.includes(address) && image.checkVisibility() && Math.min(width, height) > 200;
})"""
LIVE, RESULT = "blob:", "/view?"  # in the address of a preview, and of a file

# Replaces Load Checkpoint by Load Demo Base and sets widgets, by widget name or ``type.widget``.
_ADAPT = """([base, values]) => {
  const graph = window.app.graph;
  for (const node of [...graph._nodes]) {
    for (const widget of node.widgets ?? []) {
      const wanted = values[`${node.type}.${widget.name}`] ?? values[widget.name];
      if (wanted !== undefined && !node.inputs?.some((slot) => slot.widget?.name === widget.name && slot.link != null)) {
        widget.value = wanted;
        widget.callback?.(wanted);
      }
    }
    if (node.type !== "CheckpointLoaderSimple") continue;
    const small = window.LiteGraph.createNode("AnimeLoRA_LoadDemoBase");
    small.pos = [...node.pos];
    graph.add(small);
    small.widgets.find((widget) => widget.name === "checkpoint").value = base;
    node.outputs.forEach((output, slot) => {
      for (const id of [...(output.links ?? [])]) {
        const link = graph.links.get?.(id) ?? graph.links[id];
        small.connect(slot, graph.getNodeById(link.target_id), link.target_slot);
      }
    });
    graph.remove(node);
  }
}"""

SMALL: dict[str, Any] = {
    "steps": 2,
    "width": 64,
    "height": 64,
    "prompts": "portrait, red hoodie",
    "negative": "",
    "guidances": "2, 3",
    "lora_strengths": "0.5, 1",
    "sampler_name": "euler",
    "scheduler": "normal",
    "lora_name": LORA_FILE,
    "AnimeLoRA_DatasetPrep.resolution": 64,
    "AnimeLoRA_DatasetPrep.folder": "portraits",
    "AnimeLoRA_TrainLora.checkpoint": DEMO_BASE,
    "AnimeLoRA_TrainLora.rank": 2,
    "AnimeLoRA_TrainLora.epochs": 2,
    "AnimeLoRA_TrainLora.gradient_accumulation": 1,
    "AnimeLoRA_TrainLora.precision": "fp32",
    "AnimeLoRA_TrainLora.validation_steps": 1,
    "AnimeLoRA_TrainLora.validate_every": 1,
    "AnimeLoRA_DemoPictures.count": 4,
}


def adapt(frontend: Frontend, **changes: Any) -> None:
    """Choose the demo base and small values in the graph on the canvas. ``changes`` override them, by ``widget`` or ``type__widget``."""
    wanted = {name.replace("__", "."): value for name, value in changes.items()}
    if (name := wanted.get("AnimeLoRA_TrainLora.name")) is not None:
        wanted.setdefault("AnimeLoRA_TrainLora.training_seed", seed_of(name))
    small = {name: value for name, value in SMALL.items() if name.rpartition(".")[2] not in wanted}
    frontend.page.evaluate(_ADAPT, [DEMO_BASE, small | wanted])


def controlnet(path: Path) -> None:
    """Write an untrained ControlNet for the demo base."""
    save_file(original_names(empty()), path)


def lora(path: Path) -> None:
    """Write a random LoRA of rank 2 for the demo base's attention, with a trigger word."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for key, shape in BaseCheckpoint(BASE, "file").shapes.items():
        if not key.startswith(_UNET) or not key.endswith(("to_q.weight", "to_v.weight")):
            continue
        name = ldm_to_diffusers(key.removeprefix(_UNET).removesuffix(".weight"), _LAYOUT)
        assert name is not None, key
        module = kohya_unet_key("sd1", name)
        tensors[f"{module}.lora_down.weight"] = torch.randn(2, shape[1], generator=generator).half() * 0.1
        tensors[f"{module}.lora_up.weight"] = torch.randn(shape[0], 2, generator=generator).half() * 0.1
        tensors[f"{module}.alpha"] = torch.tensor(2.0).half()
    metadata = {"modelspec.trigger_phrase": "portraitStyle", "ss_base_model_version": "sd_v1", "ss_network_dim": "2"}
    save_file(tensors, path, metadata)
