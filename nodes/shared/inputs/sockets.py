"""Check the objects on ComfyUI's own sockets, so that a number in place of a MODEL gives a readable error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ....trainer.core.errors import UserError


def _has(*names: str) -> Callable[[Any], bool]:
    return lambda value: all(hasattr(value, name) for name in names)


def _is_image(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 4 and value.shape[-1] in (1, 3, 4) and value.numel() > 0


# by the name of the input: its ComfyUI type, its usual source, and a check by attributes, because other packs have their own classes
_KINDS: dict[str, tuple[str, str, Callable[[Any], bool]]] = {
    "model": ("MODEL", "a checkpoint loader or Load LoRA", _has("model", "clone", "add_patches")),
    "clip": ("CLIP", "a checkpoint loader or Load LoRA", _has("tokenize", "cond_stage_model")),
    "vae": ("VAE", "a checkpoint loader or Load VAE", _has("encode", "decode")),
    "control_net": ("CONTROL_NET", "Load ControlNet Model", _has("copy", "set_cond_hint")),
    "upscale_model": ("UPSCALE_MODEL", "Load Upscale Model", _has("model", "scale")),
    **dict.fromkeys(("image", "images", "control_image", "thumbnail"), ("IMAGE", "Load Image", _is_image)),
}


def require(**inputs: Any) -> None:
    """Raise UserError for the first of the ``inputs``, by their names on the node, that does not have the type of its socket."""
    for name, value in inputs.items():
        kind, source, fits = _KINDS[name]
        if not fits(value):
            what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
            raise UserError(f"The {name} input got {what} instead of {kind}.", f"Connect {source}.", kind="input")


def allow(**inputs: Any) -> None:
    """``require`` for optional inputs."""
    require(**{name: value for name, value in inputs.items() if value is not None})
