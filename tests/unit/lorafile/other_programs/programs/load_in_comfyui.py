"""Load LoRAs with ComfyUI's code, in ComfyUI's interpreter, and report the used keys and the weight changes.

    PYTHONPATH=<ComfyUI> python load_in_comfyui.py FAMILY JOBS.json

JOBS is a list of {"lora": path, "result": path, "layers": [key of the model's state dict, ...]}. Prints one JSON object with an entry for
each job: the patched layers, and the keys that ComfyUI reports as not loaded. The changes that ComfyUI computes for ``layers`` are written
to ``result``; ``shapes`` gives the sizes of layers that are smaller than the real ones. The models have full size but are on the meta
device, where they need no memory.
"""

import json
import logging
import sys
from typing import Any

family, jobs_path = sys.argv[1:]
sys.argv = [sys.argv[0], "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.lora  # noqa: E402
import comfy.lora_convert  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.sd1_clip  # noqa: E402
import comfy.sdxl_clip  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

_COMMON: dict[str, Any] = {
    "use_checkpoint": False, "image_size": 32, "out_channels": 4, "use_spatial_transformer": True, "legacy": False, "dtype": torch.float16,
    "in_channels": 4, "model_channels": 320, "use_temporal_attention": False,
}  # fmt: skip
UNETS: dict[str, dict[str, Any]] = {
    "sd1": {
        **_COMMON, "adm_in_channels": None, "num_res_blocks": [2, 2, 2, 2], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "channel_mult": [1, 2, 4, 4], "transformer_depth_middle": 1, "use_linear_in_transformer": False, "context_dim": 768,
        "num_heads": 8, "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    },
    "sdxl": {
        **_COMMON, "num_classes": "sequential", "adm_in_channels": 2816, "num_res_blocks": [2, 2, 2],
        "transformer_depth": [0, 0, 2, 2, 10, 10], "channel_mult": [1, 2, 4], "transformer_depth_middle": 10,
        "use_linear_in_transformer": True, "context_dim": 2048, "num_head_channels": 64,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    },
}  # fmt: skip
ANIMA_BLOCKS, LUMINA2_BLOCKS = 28, 26
CONFIGS = {"sd1": comfy.supported_models.SD15, "sdxl": comfy.supported_models.SDXL}
CLIPS = {"sd1": comfy.sd1_clip.SD1ClipModel, "sdxl": comfy.sdxl_clip.SDXLClipModel}


class Missing(logging.Handler):
    """Collects the keys in messages "lora key not loaded: …"."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith("lora key not loaded: "):
            self.keys.append(text.split(": ", 1)[1])


def run(job: dict[str, Any], key_map: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Load one LoRA and report the result."""
    missing = Missing()
    logging.getLogger().addHandler(missing)
    lora = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(job["lora"], safe_load=True))
    patches = comfy.lora.load_lora(lora, key_map)
    logging.getLogger().removeHandler(missing)
    changes = {}
    for layer in job["layers"]:
        base = torch.full(job.get("shapes", {}).get(layer, shapes[layer]), job.get("base", 0.0))
        changes[layer] = comfy.lora.calculate_weight([(1.0, patches[layer], 1.0, None, None)], base, layer).contiguous()
    save_file(changes, job["result"])
    return {"patched": sorted(patches), "left": missing.keys, "keys": len(lora)}


def anima() -> tuple[Any, Any]:
    """Anima as ComfyUI recognises it by the tensors of its file, and its text encoder."""
    import comfy.model_detection
    import comfy.text_encoders.anima

    marks = {"x_embedder.proj.1.weight": (2048, 68), "llm_adapter.blocks.0.cross_attn.q_proj.weight": (1024, 1024)}
    marks |= {f"blocks.{index}.mlp.layer1.weight": (8192, 2048) for index in range(ANIMA_BLOCKS)}
    found = comfy.model_detection.detect_unet_config({key: torch.empty(size, device="meta") for key, size in marks.items()}, "")
    config = comfy.supported_models.Anima({**found, "dtype": torch.float16})
    return config.get_model({}, device=torch.device("meta")), comfy.text_encoders.anima.te()


def lumina2() -> tuple[Any, Any]:
    """Lumina 2 as ComfyUI recognises it by the tensors of its file, and its text encoder."""
    import comfy.model_detection
    import comfy.text_encoders.lumina2

    marks = {"cap_embedder.1.weight": (2304, 2304), "noise_refiner.0.attention.k_norm.weight": (96,)}
    marks |= {f"layers.{index}.attention.qkv.weight": (3840, 2304) for index in range(LUMINA2_BLOCKS)}
    found = comfy.model_detection.detect_unet_config({key: torch.empty(size, device="meta") for key, size in marks.items()}, "")
    config = comfy.supported_models.Lumina2({**found, "dtype": torch.bfloat16})
    return config.get_model({}, device=torch.device("meta")), comfy.text_encoders.lumina2.te()


def main() -> None:
    """Build the models once and process the jobs."""
    if family in ("anima", "lumina2"):
        model, clip_class = {"anima": anima, "lumina2": lumina2}[family]()
    else:
        model, clip_class = comfy.model_base.BaseModel(CONFIGS[family](UNETS[family]), device=torch.device("meta")), CLIPS[family]
    with torch.device("meta"):
        clip = clip_class(device="meta", dtype=torch.float16)
    key_map = comfy.lora.model_lora_keys_clip(clip, comfy.lora.model_lora_keys_unet(model, {}))
    shapes = {key: tuple(tensor.shape) for part in (model, clip) for key, tensor in part.state_dict().items()}
    with open(jobs_path, encoding="utf-8") as file:
        print(json.dumps([run(job, key_map, shapes) for job in json.load(file)]))


main()
