"""Load LoRAs with InvokeAI's own code: which base it takes them for, which layers it finds, and the weight changes.

    python invokeai.py SITE JOBS.json

SITE is a folder with ``pip install --no-deps --target SITE invokeai pydantic-settings gguf python-dotenv picklescan deprecated wrapt
spandrel``; torch, diffusers and transformers are this interpreter's. Heavy packages that InvokeAI imports and LoRAs do not need are
replaced by empty modules.
"""

import importlib.abc
import importlib.machinery
import json
import sys
import types
from pathlib import Path

site, jobs_path = sys.argv[1:]
sys.path.append(site)

import torch  # noqa: E402
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel  # noqa: E402, F401  (before the empty modules)
from safetensors.torch import load_file, save_file  # noqa: E402

_NOT_NEEDED = {"torchvision", "cv2", "compel"}


class Empty(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes a module whose every attribute is an empty class."""

    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] in _NOT_NEEDED else None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__path__ = []

        def attribute(name):
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

        module.__getattr__ = attribute
        return module

    def exec_module(self, module):
        pass


sys.meta_path.append(Empty())

import invokeai.backend.model_manager.load  # noqa: E402, F401  (first: its modules import each other in a circle)
from invokeai.backend.model_manager.configs.lora import LoRA_LyCORIS_SD1_Config  # noqa: E402
from invokeai.backend.model_manager.model_on_disk import ModelOnDisk  # noqa: E402
from invokeai.backend.patches.layer_patcher import LayerPatcher  # noqa: E402
from invokeai.backend.patches.lora_conversions.sd_lora_conversion_utils import lora_model_from_sd_state_dict  # noqa: E402
from invokeai.backend.patches.lora_conversions.sdxl_lora_conversion_utils import convert_sdxl_keys_to_diffusers_format  # noqa: E402


def run(job):
    """One file."""
    disk = ModelOnDisk(Path(job["lora"]))
    LoRA_LyCORIS_SD1_Config._validate_looks_like_lora(disk)
    base = LoRA_LyCORIS_SD1_Config._get_base_or_raise(disk).value
    state = load_file(job["lora"])
    model = lora_model_from_sd_state_dict(convert_sdxl_keys_to_diffusers_format(state) if base == "sdxl" else state)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**job["unet"])
    found, changes = [], {}
    for key, layer in model.layers.items():
        if not key.startswith("lora_unet_"):
            continue
        name, module = LayerPatcher._get_submodule(unet, key[len("lora_unet_") :], layer_key_is_flattened=True)
        found.append(name)
        if name in job["layers"]:
            layer.to(dtype=torch.float32)
            changes[name] = layer.get_parameters({"weight": torch.zeros(module.weight.shape)}, 1.0)["weight"].contiguous()
    save_file(changes, job["result"])
    return {"base": base, "found": sorted(found), "layers": len(model.layers)}


with open(jobs_path, encoding="utf-8") as file:
    print(json.dumps([run(job) for job in json.load(file)]))
