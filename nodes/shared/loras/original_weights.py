"""The weights that a model and a text encoder had before any LoRA was applied to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.lora

from ....trainer.core.errors import UserError


def original_weights(weights: Any, model: Any, clip: Any) -> Callable[[Any], Any]:
    """A function that returns the original weight, in fp32 on the CPU, that a module of the LoRA ``weights`` changes.

    ``clip`` may be None when the LoRA changes no text encoder. The function raises UserError for a layer that the model does not have, or
    has in another size.
    """
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    patches_by_key = dict(model.get_key_patches())
    if clip is not None:
        keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, keys)
        patches_by_key |= clip.patcher.get_key_patches()

    def weight(module: Any) -> Any:
        key = keys.get(module.kohya_key(weights.family, weights.unet_layout))
        if key not in patches_by_key:
            text_is_missing = module.component != "unet" and clip is None
            what = (
                "Connect the text encoder to the clip input."
                if text_is_missing
                else "Connect the kind of model that the LoRA was made for."
            )
            raise UserError(f"The connected model lacks the layer {module.component} {module.name} of this LoRA.", what, kind="lora")
        stored, convert = patches_by_key[key][0]
        whole = convert(stored.detach().float().cpu(), inplace=False)
        if whole.numel() != module.delta().numel():
            raise UserError(
                f"The layer {module.name} of the connected model has another size than the LoRA's.",
                "Connect the kind of model that the LoRA was made for.",
                kind="lora",
            )
        return whole

    return weight
