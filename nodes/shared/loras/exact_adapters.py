"""ComfyUI's weight adapters where their own computation is not what was trained, or fails: DoRA, and LoKr in Tucker form.

The formulas of DoRA, and what ComfyUI makes of them, are in ``trainer/lorafile/dora.py``. These adapters are ComfyUI's classes with another
``calculate_weight``, so that everything else that it does with a patch stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import comfy.model_management
import comfy.weight_adapter
import torch

from ....trainer.lorafile.algorithms.dora import EPSILON
from ....trainer.lorafile.comfyui_dora import uses_base_norm

_LORA, _LOHA, _LOKR = (getattr(comfy.weight_adapter, name) for name in ("LoRAAdapter", "LoHaAdapter", "LoKrAdapter"))
_SCALE = {"lora": 4, "loha": 7, "lokr": 8}  # where ``dora_scale`` is among an adapter's weights
_RESHAPE = 5  # of LoRA: a shape to which the weight is padded first


def mended(patches: Mapping[Any, Any], metadata: Mapping[str, str] | None) -> dict[Any, Any]:
    """``patches`` of a LoRA file, as ``comfy.lora.load_lora`` makes them, with adapters that compute what was trained."""
    exact = not uses_base_norm(metadata or {})
    return {key: _mended(patch, exact) for key, patch in patches.items()}


def _mended(patch: Any, exact: bool) -> Any:
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
    """LoKr whose second factor is multiplied out: ``torch.kron`` fails on what ComfyUI's einsum leaves, which is not contiguous.

    ComfyUI divides alpha by the rank only where a factor is itself a product; of two whole factors the scale is 1, so it goes into the
    factor. Where the first is a product too, its rank is divided by as before (ComfyUI takes the second's, if that is one).
    """
    first, _, alpha, first_a, first_b, second_a, second_b, tucker, scale = patch.weights
    second = torch.einsum("pqkl,qi,po->oikl", tucker.float(), second_b.float(), second_a.float())
    if alpha is not None:
        second = second * (alpha / second_b.shape[0])
    if first is None:
        first = first_a.float() @ first_b.float()
    return type(patch)(patch.loaded_keys, (first, second.contiguous(), None, None, None, None, None, None, scale))


class _Exact:
    """DoRA by outputs as it was trained: m (W + D) / ||W + D||."""

    name: str
    weights: Any
    loaded_keys: Any
    core: Any  # the class whose change D is taken

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
        """``weight`` after the patch, in its dtype and at its place; computed in fp32."""
        place = _SCALE[self.name]
        plain = [each if number != place else None for number, each in enumerate(self.weights)]
        whole = weight.float()
        start = torch.zeros_like(whole)
        change = self.core(self.loaded_keys, tuple(plain)).calculate_weight(
            start, key, 1.0, 1.0, offset, lambda value: value, torch.float32, original_weight
        )
        changed = whole + function(change)
        norm = changed.flatten(1).norm(dim=1) + EPSILON
        scale = comfy.model_management.cast_to_device(self.weights[place], weight.device, torch.float32).flatten()
        changed *= (scale / norm).reshape(-1, *[1] * (changed.ndim - 1))
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
