"""Load CLIP text models from single files (OpenAI's and OpenCLIP's names) and diffusers folders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...core.errors import UserError
from ..checkpoints.base_checkpoint import BaseCheckpoint, layout_errors
from ..checkpoints.diffusers_folder import load_from_folder, weights_variant
from . import ldm_configs

if TYPE_CHECKING:
    import torch

_HEAD_DIM = 64
# OpenCLIP's names for the parts of a block, and transformers'
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_FIXED = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}


def load_from_subfolder(cls: Any, checkpoint: BaseCheckpoint, part: str, dtype: torch.dtype) -> Any:
    """The text model in the subfolder ``part`` of a diffusers folder."""
    folder = checkpoint.path / part
    with layout_errors(checkpoint.name, part, "Stable Diffusion"):
        model = load_from_folder(cls, folder, dtype=dtype, variant=weights_variant(folder))
    return model.eval().requires_grad_(False)


def empty_from_subfolder(cls: Any, checkpoint: BaseCheckpoint, part: str) -> Any:
    """The same model on the ``meta`` device, without weights."""
    import torch
    from transformers import CLIPTextConfig

    config = CLIPTextConfig.from_pretrained(checkpoint.path / part, local_files_only=True)  # nosec B615: local
    with torch.device("meta"):
        return cls(config).eval().requires_grad_(False)


def load_openai(checkpoint: BaseCheckpoint, prefix: str, *, family: str) -> Any:
    """CLIP ViT-L (quick GELU) from a single file, whose names below ``prefix`` are transformers'."""
    tensors = checkpoint.tensors(lambda key: key.startswith(prefix) and not key.endswith("position_ids"))
    named = {key[len(prefix) :]: value for key, value in tensors.items()}
    return _fill(empty_openai(checkpoint, prefix, family=family), named, checkpoint, family)


def empty_openai(checkpoint: BaseCheckpoint, prefix: str, *, family: str) -> Any:
    """The same model on the ``meta`` device, without weights."""
    from transformers import CLIPTextModel

    with layout_errors(checkpoint.name, "text encoder", family):
        config = ldm_configs.clip_config(checkpoint.shapes, prefix=prefix, head_dim=_HEAD_DIM, activation="quick_gelu")
        return _empty(CLIPTextModel, config)


def load_open_clip(checkpoint: BaseCheckpoint, prefix: str, *, family: str, projection: bool) -> Any:
    """An OpenCLIP text model from a single file: with its projection (SDXL's), or without its last layer (SD 2.x's).

    SD 2.x was trained on the output of the layer before the last, followed by the final norm, so the last layer is never run.
    """
    names = open_clip_names({key[len(prefix) :] for key in checkpoint.shapes if key.startswith(prefix)})
    model = empty_open_clip(checkpoint, prefix, family=family, projection=projection)
    last = f"encoder.layers.{model.config.num_hidden_layers}."
    named: dict[str, torch.Tensor] = {}
    for key, value in checkpoint.tensors(lambda key: key.startswith(prefix)).items():
        targets = names.get(key[len(prefix) :], ())
        if not targets or targets[0].startswith(last):
            continue
        parts = value.chunk(len(targets)) if len(targets) > 1 else [value]
        named.update({target: part for target, part in zip(targets, parts, strict=True)})
    if projection and (stored := _stored_projection(checkpoint, prefix)):
        matrix = checkpoint.tensors(lambda key: key == stored)[stored]
        named["text_projection.weight"] = matrix if stored.endswith(".weight") else matrix.T.contiguous()
    return _fill(model, named, checkpoint, family)


def empty_open_clip(checkpoint: BaseCheckpoint, prefix: str, *, family: str, projection: bool) -> Any:
    """The same model on the ``meta`` device, without weights."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    names = open_clip_names({key[len(prefix) :] for key in checkpoint.shapes if key.startswith(prefix)})
    shapes = {names[key[len(prefix) :]][0]: shape for key, shape in checkpoint.shapes.items() if key[len(prefix) :] in names}
    with layout_errors(checkpoint.name, "text encoder", family):
        config = ldm_configs.clip_config(shapes, prefix="", head_dim=_HEAD_DIM, activation="gelu")
        if not projection:
            config["num_hidden_layers"] -= 1
        elif stored := _stored_projection(checkpoint, prefix):
            config["projection_dim"] = checkpoint.shapes[stored][0 if stored.endswith(".weight") else 1]
        return _empty(CLIPTextModelWithProjection if projection else CLIPTextModel, config)


def _stored_projection(checkpoint: BaseCheckpoint, prefix: str) -> str:
    """The key of the projection, a matrix for ``x @ projection`` or the weight of a linear layer; empty without one."""
    return next((key for key in (f"{prefix}text_projection", f"{prefix}text_projection.weight") if key in checkpoint.shapes), "")


def open_clip_names(names: set[str]) -> Mapping[str, tuple[str, ...]]:
    """transformers' names for OpenCLIP's text tensors, without ``text_model.``: one each, or three for a joint projection of q, k and v."""
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        if name in _FIXED:
            found[name] = (_FIXED[name],)
        elif match := re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)", name):
            layer, part, kind = match.groups()
            root = f"encoder.layers.{layer}."
            if part == "attn.in_proj":
                found[name] = tuple(f"{root}self_attn.{which}_proj.{kind}" for which in "qkv")
            elif part in _BLOCK:
                found[name] = (f"{root}{_BLOCK[part]}.{kind}",)
    return found


def _empty(cls: Any, config: dict[str, Any]) -> Any:
    import torch
    from transformers import CLIPTextConfig

    with torch.device("meta"):
        return cls(CLIPTextConfig(**config)).eval().requires_grad_(False)


def _fill(model: Any, tensors: Mapping[str, torch.Tensor], checkpoint: BaseCheckpoint, family: str) -> Any:
    """Fill ``model`` (on the meta device) with ``tensors``, named without ``text_model.``. Raises UserError unless they fit exactly."""
    import torch

    # transformers 5.6 dropped "text_model." from the names of CLIPTextModel
    lead = "text_model." if any(name.startswith("text_model.") for name in model.state_dict()) else ""
    renamed = {key if key.startswith("text_projection") else lead + key: value.float() for key, value in tensors.items()}
    model.to_empty(device="cpu")
    try:
        missing, unexpected = model.load_state_dict(renamed, strict=False)
    except RuntimeError as error:  # misshapen tensors
        raise _incomplete(checkpoint, family, str(error).splitlines()[-1].strip()) from error
    missing = [key for key in missing if not key.endswith("position_ids")]
    if missing or unexpected:
        example = (missing + unexpected)[0]
        raise _incomplete(checkpoint, family, f"{len(missing)} tensors missing, {len(unexpected)} unknown, for example {example}")
    for name, buffer in model.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand(buffer.shape))
    return model.eval().requires_grad_(False)


def _incomplete(checkpoint: BaseCheckpoint, family: str, cause: str) -> UserError:
    return UserError(
        f"The text encoder of {checkpoint.name} is incomplete ({cause}).", f"Use a complete {family} checkpoint.", kind="checkpoint"
    )
