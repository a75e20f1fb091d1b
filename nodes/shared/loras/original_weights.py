"""The weights that a model and a text encoder had before any LoRA was put on them, by the layers of a LoRA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.lora

from ....trainer.core.errors import UserError


def original_weights(weights: Any, model: Any, clip: Any) -> Callable[[Any], Any]:
    """What gives the weight, in fp32 on the CPU, that a module of ``weights`` changes.

    ``clip`` may be None where no text encoder is changed. The function raises UserError for a layer that the model does not have in this
    size.
    """
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    held = dict(model.get_key_patches())
    if clip is not None:
        keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, keys)
        held |= clip.patcher.get_key_patches()

    def weight(module: Any) -> Any:
        key = keys.get(module.kohya_key(weights.family, weights.unet_layout))
        if key not in held:
            what = "Connect the text encoder to clip, too." if module.component != "unet" and clip is None else "Is it of another kind?"
            raise UserError(f"The connected model has no layer {module.component} {module.name} for this LoRA.", what, kind="lora")
        found, convert = held[key][0]
        whole = convert(found.detach().float().cpu(), inplace=False)
        if whole.numel() != module.delta().numel():
            raise UserError(
                f"The connected model's layer {module.name} has another size than the LoRA's.",
                "Connect the LoRA's kind of model.",
                kind="lora",
            )
        return whole

    return weight
