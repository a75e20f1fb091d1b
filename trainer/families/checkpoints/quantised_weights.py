"""Quantised weights of single files: the scales stored beside them, and dequantisation.

Two layouts are supported. Older files have ``<layer>.scale_weight`` beside the weight, and a marker ``scaled_fp8`` for each model. Newer
ones, which ComfyUI reads since late 2025, have ``<layer>.weight_scale`` and a description in JSON: in the tensor ``<layer>.comfy_quant``
or, for all layers, in the metadata ``_quantization_metadata`` (ComfyUI's QUANTIZATION.md). A weight is its stored value times the scale.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...core.errors import UserError
from ...core.messages import Message, Setting

if TYPE_CHECKING:
    import torch

_SCALES = (".scale_weight", ".weight_scale")
# tensors of a quantised layer besides its weight; those of the input serve fast kernels and do not change the weight
_COMPANIONS = (*_SCALES, ".scale_input", ".input_scale", ".comfy_quant", ".weight_scale_2", ".pre_quant_scale", ".scaled_fp8")
_FORMATS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")
_FOUR_BIT_SUFFIXES = (".quant_map", ".qweight", ".weight_s_rel")  # of bitsandbytes, GPTQ and 4-bit formats
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
_GROUP = 256  # ComfyUI's default of convrot_groupsize
_GROUPS = (0, 4, 16, 64, 256, 1024)  # 0: not rotated; Hadamard matrices of this construction have sizes that are powers of 4


@dataclass(frozen=True)
class QuantisedWeight:
    """How a weight is stored: the key of its ``scale``, and the size of the groups of inputs that were rotated (0: none)."""

    scale: str
    rotation_group: int = 0


def is_companion(key: str) -> bool:
    """Whether ``key`` describes a quantised layer and is not a weight itself."""
    return key.endswith(_COMPANIONS) or key == "scaled_fp8"


def quantised_weights(
    name: str, dtypes: Mapping[str, str], metadata: Mapping[str, str], read: Callable[[Sequence[str]], Mapping[str, torch.Tensor]]
) -> dict[str, QuantisedWeight]:
    """The quantised weights among tensors of these ``dtypes`` (names of safetensors or torch), by key.

    ``read`` returns tensors by key. It opens the file, so it is called once. Raises UserError with the file's ``name`` for an unknown
    quantisation.
    """
    keys = [key for key in dtypes if key.endswith(".comfy_quant")]
    descriptions = read(keys) if keys else {}
    described = _described(metadata) | {key.removesuffix(".comfy_quant"): _json(bytes(descriptions[key].tolist())) for key in keys}
    for layer, description in described.items():
        if (kind := description.get("format")) not in _FORMATS:
            raise _unknown(name, f"{layer} as {kind}")
    if four_bit := next((key for key in dtypes if key.endswith(_FOUR_BIT_SUFFIXES)), ""):
        raise _unknown(name, f"{four_bit} belongs to 4-bit weights")
    found: dict[str, QuantisedWeight] = {}
    for key in dtypes:
        if key.endswith(_SCALES):
            layer = key[: key.rindex(".")]
            if (group := _group(described.get(layer, {}))) not in _GROUPS:
                raise _unknown(name, f"{layer} is rotated in groups of {group}")
            found[f"{layer}.weight"] = QuantisedWeight(key, group)
    for key, dtype in dtypes.items():
        if key.endswith(".weight") and key not in found and dtype.removeprefix("torch.") not in _FLOATS:
            raise _unknown(name, f"{key} as {dtype} without a scale")
        if key.endswith(".pre_quant_scale"):
            raise _unknown(name, f"{key} expects smoothed inputs")
    return found


def dequantised(key: str, weight: torch.Tensor, scale: torch.Tensor, stored: QuantisedWeight) -> torch.Tensor:
    """``weight`` (outputs, ...) times ``scale``, in fp32. The scale is one number, one for each output, or (outputs, blocks, 1) for blocks
    of inputs. Raises UserError when the shapes do not match."""
    value, factor = weight.float(), scale.float()
    outputs = value.shape[0] if value.dim() else 1
    blocks = factor.shape[1] if factor.dim() == 3 else 1
    fits = value.dim() == 2 and not value.shape[1] % max(blocks, 1) and not value.shape[1] % max(stored.rotation_group, 1)
    if (stored.rotation_group or factor.dim() == 3) and not fits:
        factor = factor.new_empty(0)
    if factor.numel() == 1:
        value = value * factor.reshape(())
    elif factor.dim() != 3 and factor.numel() == outputs:
        value = value * factor.reshape(-1, *[1] * (value.dim() - 1))
    elif factor.dim() == 3 and factor.shape[0] == outputs:
        value = (value.unflatten(1, (blocks, -1)) * factor).flatten(1)
    else:
        raise UserError(
            f"The scale of {key} has the shape {list(scale.shape)}, which does not fit its weight {list(weight.shape)}.",
            "Download the checkpoint again, or use its fp16 version.",
            kind="checkpoint",
        )
    return _rotated_back(value, stored.rotation_group) if stored.rotation_group else value


def _rotated_back(weight: torch.Tensor, size: int) -> torch.Tensor:
    """Undo the rotation of ``weight`` (outputs, inputs), whose groups of ``size`` inputs were multiplied by an orthogonal Hadamard matrix.

    The matrix is the Kronecker power of the 4 x 4 one whose antidiagonal is -1 ("ConvRot", as ComfyUI stores int8 weights).
    """
    import torch

    four = torch.ones(4, 4) - 2 * torch.eye(4).flip(0)
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < size:
        matrix = torch.kron(matrix.contiguous(), four) / 2
    original: torch.Tensor = (weight.unflatten(1, (-1, size)) @ matrix).flatten(1)
    return original


def _group(description: Mapping[str, Any]) -> Any:
    more = description.get("params")
    settings = {**(more if isinstance(more, dict) else {}), **description}
    return settings.get("convrot_groupsize", _GROUP) if settings.get("convrot") else 0


def _described(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    layers = _json(metadata.get("_quantization_metadata", "{}").encode()).get("layers")
    return {str(name): value for name, value in layers.items() if isinstance(value, dict)} if isinstance(layers, dict) else {}


def _json(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _unknown(name: str, what: str) -> UserError:
    return UserError(
        f"The weights of {name} use a quantisation that this version cannot read ({what}).",
        Message(
            "Use the checkpoint in fp16, bf16, fp8 or int8 with scales. ", Setting("training.base_precision"), " reduces its memory use."
        ),
        kind="checkpoint",
    )
