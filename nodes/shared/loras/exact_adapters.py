"""Replacements for ComfyUI's weight adapters where they deviate from the trained weights or fail: DoRA, and LoKr in Tucker form.

How ComfyUI computes DoRA is described in ``trainer/lorafile/comfyui_dora.py``. These adapters are subclasses of ComfyUI's with another
``calculate_weight``, so that everything else that ComfyUI does with patches stays the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import comfy.model_management
import comfy.weight_adapter
import torch

from ....trainer.lorafile.algorithms.dora import apply_dora
from ....trainer.lorafile.comfyui_dora import uses_base_norm

_LORA, _LOHA, _LOKR = (getattr(comfy.weight_adapter, name) for name in ("LoRAAdapter", "LoHaAdapter", "LoKrAdapter"))
_SCALE = {"lora": 4, "loha": 7, "lokr": 8}  # position of ``dora_scale`` in an adapter's weights
_RESHAPE = 5  # position of the shape to which LoRA pads the weight first


def exact_patches(patches: Mapping[Any, Any], metadata: Mapping[str, str] | None) -> dict[Any, Any]:
    """``patches`` of a LoRA file from ``comfy.lora.load_lora``, with adapters that compute the trained weights."""
    exact = not uses_base_norm(metadata or {})
    return {key: _exact_patch(patch, exact) for key, patch in patches.items()}


def _exact_patch(patch: Any, exact: bool) -> Any:
    name = getattr(patch, "name", "")
    if name not in _SCALE:
        return patch
    if name == "lokr" and patch.weights[7] is not None and patch.weights[1] is None:
        patch = _without_tucker(patch)
    weights = patch.weights
    reshaped = name == "lora" and len(weights) > _RESHAPE and weights[_RESHAPE] is not None
    if not exact or reshaped or not _is_by_output(name, weights):
        return patch
    return _EXACT[name](patch.loaded_keys, weights)


def _is_by_output(name: str, weights: Any) -> bool:
    scale = weights[_SCALE[name]]
    if not isinstance(scale, torch.Tensor) or scale.ndim == 0:
        return False
    if name == "lokr":
        first, second = (weights[place] if weights[place] is not None else weights[other] for place, other in ((0, 3), (1, 5)))
        return bool(scale.shape[0] == first.shape[0] * second.shape[0])
    return bool(scale.shape[0] == weights[0].shape[0])


def _without_tucker(patch: Any) -> Any:
    """LoKr with its second factor computed in advance, because ``torch.kron`` fails on the non-contiguous result of ComfyUI's einsum.

    ComfyUI divides alpha by the rank only when a factor is itself a product. With two full factors the scale is 1, so alpha / rank goes
    into the second factor.
    """
    first, _, alpha, first_a, first_b, second_a, second_b, tucker, scale = patch.weights
    second = torch.einsum("pqkl,qi,po->oikl", tucker.float(), second_b.float(), second_a.float())
    if alpha is not None:
        second = second * (alpha / second_b.shape[0])
    if first is None:
        first = first_a.float() @ first_b.float()
    return type(patch)(patch.loaded_keys, (first, second.contiguous(), None, None, None, None, None, None, scale))


class _Exact:
    """DoRA with magnitudes of outputs as it was trained: m (W + D) / ||W + D||."""

    name: str
    weights: Any
    loaded_keys: Any
    core: Any  # ComfyUI's class, which computes the change D

    def calculate_weight(
        self,
        weight: torch.Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: Any,
        function: Callable[[torch.Tensor], torch.Tensor],
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight: Any = None,
    ) -> torch.Tensor:
        """``weight``, changed in place; computed in fp32."""
        place = _SCALE[self.name]
        plain = [each if number != place else None for number, each in enumerate(self.weights)]
        whole = weight.float()
        start = torch.zeros_like(whole)
        change = self.core(self.loaded_keys, tuple(plain)).calculate_weight(
            start, key, 1.0, 1.0, offset, lambda value: value, torch.float32, original_weight
        )
        scale = comfy.model_management.cast_to_device(self.weights[place], weight.device, torch.float32).flatten()
        changed = apply_dora(whole, function(change), scale)
        weight.copy_(whole + strength * (changed - whole))
        return weight


class ExactDora(_Exact, _LORA):  # type: ignore[misc, valid-type]
    """LoRA with magnitudes."""

    core = _LORA


class ExactDoraLoHa(_Exact, _LOHA):  # type: ignore[misc, valid-type]
    """LoHa with magnitudes."""

    core = _LOHA


class ExactDoraLoKr(_Exact, _LOKR):  # type: ignore[misc, valid-type]
    """LoKr with magnitudes."""

    core = _LOKR


_EXACT: dict[str, Any] = {"lora": ExactDora, "loha": ExactDoraLoHa, "lokr": ExactDoraLoKr}
