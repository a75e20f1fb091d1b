"""The weights in a single-file checkpoint (original layout) that the modules of a LoRA change."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ...core.errors import UserError
from .. import container
from ..algorithms.kinds import PASSED_THROUGH
from ..algorithms.shape_checks import dora_scale_fits
from ..algorithms.weight_change import delta_shape
from ..naming.unet_names import diffusers_to_ldm
from ..weights import LoraModule, LoraWeights
from . import anima_checkpoint, lumina2_checkpoint

TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_UNET = "model.diffusion_model."

# prefixes of text encoders in transformers' layout (SD 1.x, SDXL's first) and in OpenCLIP's (SD 2.x, SDXL's second)
_CLIP = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
_OPEN_CLIP = {"te1": "cond_stage_model.model.transformer.resblocks.", "te2": "conditioner.embedders.1.model.transformer.resblocks."}
_OPEN_CLIP_LAYER = {
    "self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
}  # fmt: skip
_OPEN_CLIP_QKV = {"self_attn.q_proj": 0, "self_attn.k_proj": 1, "self_attn.v_proj": 2}


@dataclass(frozen=True)
class CheckpointWeight:
    """A weight in the checkpoint. ``third`` selects a third of the rows of OpenCLIP's joint q, k, v matrix."""

    key: str
    third: int | None = None

    def view(self, tensor: torch.Tensor) -> torch.Tensor:
        """The rows of the checkpoint's ``tensor`` that belong to this weight."""
        rows = tensor.shape[0] // 3
        return tensor if self.third is None else tensor[self.third * rows : (self.third + 1) * rows]

    def rows(self, header: container.SafetensorsHeader) -> int:
        """How many rows that are."""
        outputs = header.tensors[self.key][1][0]
        return outputs if self.third is None else outputs // 3


def text_width(header: container.SafetensorsHeader) -> int:
    """Width of the text embeddings of the checkpoint's denoiser. Raises UserError when it holds none that LoRAs can be merged into."""
    if (prefix := anima_checkpoint.anima_prefix(header.tensors)) is not None:
        return header.tensors[anima_checkpoint.text_key(prefix)][1][-1]
    if (prefix := lumina2_checkpoint.lumina2_prefix(header.tensors)) is not None:
        return header.tensors[lumina2_checkpoint.text_key(prefix)][1][-1]
    for key, (_, shape, _) in header.tensors.items():
        if key.startswith(_UNET) and key.endswith("attn2.to_k.weight") and len(shape) > 1:
            return shape[1]
    raise UserError(
        "The checkpoint is not a Stable Diffusion, Anima or Lumina 2 checkpoint in the original layout.",
        "Choose a single .safetensors file. Diffusers folders are not supported.",
        kind="checkpoint",
    )


def transformer_family(keys: Mapping[str, object]) -> str:
    """The family of a checkpoint with these ``keys`` whose denoiser is a transformer; empty for a UNet."""
    if anima_checkpoint.anima_prefix(keys) is not None:
        return "anima"
    return "lumina2" if lumina2_checkpoint.lumina2_prefix(keys) is not None else ""


def weight_of_module(tensors: Mapping[str, object], weights: LoraWeights, module: LoraModule) -> CheckpointWeight | None:
    """The weight that ``module`` changes; None when the checkpoint does not have it."""
    if weights.family == "anima":
        found = anima_checkpoint.key_of_module(tensors, anima_checkpoint.anima_prefix(tensors) or "", module)
        return CheckpointWeight(found) if found else None
    if weights.family == "lumina2":
        found = lumina2_checkpoint.key_of_module(tensors, lumina2_checkpoint.lumina2_prefix(tensors) or "", module)
        return CheckpointWeight(found) if found else None
    if module.component == "unet":
        key = f"{_UNET}{diffusers_to_ldm(module.name, weights.unet_layout)}.weight"
        return CheckpointWeight(key) if key in tensors else None
    short = module.name.removeprefix("text_model.")
    if module.component == "te1":
        for prefix in _CLIP:
            for name in (module.name, short):
                if f"{prefix}{name}.weight" in tensors:
                    return CheckpointWeight(f"{prefix}{name}.weight")
    prefix, parts = _OPEN_CLIP[module.component], short.split(".")
    if parts[:2] != ["encoder", "layers"]:
        return None
    layer, inner = parts[2], ".".join(parts[3:])
    if inner in _OPEN_CLIP_QKV:
        weight = CheckpointWeight(f"{prefix}{layer}.attn.in_proj_weight", _OPEN_CLIP_QKV[inner])
    else:
        weight = CheckpointWeight(f"{prefix}{layer}.{_OPEN_CLIP_LAYER.get(inner, inner)}.weight")
    return weight if weight.key in tensors else None


def require_fit(header: container.SafetensorsHeader, weight: CheckpointWeight, module: LoraModule) -> None:
    """Raise UserError unless ``module`` can be merged into ``weight``."""
    dtype, shape, _ = header.tensors[weight.key]
    if dtype not in TORCH_DTYPES:
        raise UserError(
            f"The checkpoint's {weight.key} is stored as {dtype}.", "Use a checkpoint in fp16, bf16 or fp32.", kind="checkpoint"
        )
    if module.algorithm in PASSED_THROUGH or "reshape_weight" in module.tensors:
        raise UserError(f"{module.name} ({module.algorithm}) cannot be merged into a checkpoint.", "Load this LoRA instead.", kind="lora")
    change, rows = delta_shape(module.algorithm, module.tensors), weight.rows(header)
    if rows != change[0] or not _same_inputs(shape[1:], change[1:]):
        raise UserError(
            f"The LoRA's {module.name} is {list(change)} and the checkpoint's {list(shape)}.",
            "They belong to different models.",
            kind="lora",
        )
    scale = module.tensors.get("dora_scale")
    if scale is not None and not dora_scale_fits(tuple(scale.shape), (rows, *shape[1:])):
        raise UserError(
            f"The LoRA's {module.name} has a dora_scale {list(scale.shape)}, which does not fit the checkpoint's {list(shape)}.",
            "They belong to different models.",
            kind="lora",
        )


def reader_of_weights(checkpoint: Path, weights: LoraWeights) -> Callable[[LoraModule], torch.Tensor]:
    """A function that reads the weight in ``checkpoint`` that a module of ``weights`` changes, in fp32. All modules must fit."""
    header = container.read_safetensors_header(checkpoint)

    def read(module: LoraModule) -> torch.Tensor:
        weight = weight_of_module(header.tensors, weights, module)
        assert weight is not None
        dtype, shape, (begin, end) = header.tensors[weight.key]
        with checkpoint.open("rb") as file:
            file.seek(header.data_start + begin)
            data = bytearray(file.read(end - begin))
        return weight.view(torch.frombuffer(data, dtype=TORCH_DTYPES[dtype]).reshape(shape).float())

    return read


def _same_inputs(shape: Sequence[int], change: Sequence[int]) -> bool:
    """Whether both have the same inputs: equal sizes besides ones, or a kernel of which one is flattened, as LoHa and LoKr are stored."""
    return [size for size in shape if size != 1] == [size for size in change if size != 1] or math.prod(shape) == math.prod(change)
