"""Load LoRAs with InvokeAI's own code and report the base it recognises, the layers it finds, and the weight changes.

    python load_in_invokeai.py SITE JOBS.json

SITE is a folder with ``pip install --no-deps --target SITE invokeai pydantic-settings gguf python-dotenv picklescan deprecated wrapt
spandrel blake3``; torch, diffusers and transformers are this interpreter's. Heavy packages that InvokeAI imports but does not need for
LoRAs are replaced by empty modules.
"""

import importlib.abc
import importlib.machinery
import json
import sys
import types
from importlib import import_module
from pathlib import Path
from typing import Any

site, jobs_path = sys.argv[1:]
sys.path.append(site)

import torch  # noqa: E402
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel  # noqa: E402, F401  (before the empty modules)
from safetensors.torch import load_file, save_file  # noqa: E402

_NOT_NEEDED = {"torchvision", "cv2", "compel"}


class Empty(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes modules all of whose attributes are empty classes."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] in _NOT_NEEDED else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__path__ = []

        def attribute(name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

        module.__dict__["__getattr__"] = attribute
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


sys.meta_path.append(Empty())

_BACKEND = "invokeai.backend"
import_module(f"{_BACKEND}.model_manager.load")  # first: its modules import each other in a circle
Config = import_module(f"{_BACKEND}.model_manager.configs.lora").LoRA_LyCORIS_SD1_Config
NotAMatch = import_module(f"{_BACKEND}.model_manager.configs.identification_utils").NotAMatchError
ModelOnDisk = import_module(f"{_BACKEND}.model_manager.model_on_disk").ModelOnDisk
LayerPatcher = import_module(f"{_BACKEND}.patches.layer_patcher").LayerPatcher
_CONVERSIONS = f"{_BACKEND}.patches.lora_conversions"
read_sd = import_module(f"{_CONVERSIONS}.sd_lora_conversion_utils").lora_model_from_sd_state_dict
rename_sdxl = import_module(f"{_CONVERSIONS}.sdxl_lora_conversion_utils").convert_sdxl_keys_to_diffusers_format


def run(job: dict[str, Any]) -> dict[str, Any]:
    """One file."""
    disk = ModelOnDisk(Path(job["lora"]))
    Config._validate_looks_like_lora(disk)
    try:
        base = Config._get_base_or_raise(disk).value
    except NotAMatch as error:  # users must then choose the base when installing the file
        base = str(error)
    state = load_file(job["lora"])
    model = read_sd(rename_sdxl(state) if job["family"] == "sdxl" else state)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**job["unet"])
    found: list[str] = []
    changes: dict[str, torch.Tensor] = {}
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
