"""CLIP text encoders of single files (OpenAI's and OpenCLIP's names) and diffusers folders, and how prompts go through them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from . import ldm
from .base import tokenizer_folder
from .checkpoint import Checkpoint, laid_out_as

if TYPE_CHECKING:
    import torch

_HEAD_DIM = 64
# OpenCLIP's names of a block's parts, and transformers'
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


class ClipText:
    """A CLIP text model and its tokenizer. Prompts are cut at 77 tokens.

    Shorter ones are filled with the tokenizer's padding: the end token, or see ``zero_padded``. ``penultimate``: the last but one
    layer's output without the final norm, as SDXL uses it, else the last layer's with it.
    """

    def __init__(self, tokenizer: Any, model: Any, *, penultimate: bool = False) -> None:
        self.tokenizer = tokenizer
        self.model = model
        self.penultimate = penultimate

    def encode(self, prompts: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        """``embeds`` (77, width) in fp32 on the CPU, and ``pooled`` (width,) for a model with a projection."""
        import torch

        tokens = self.tokenizer(list(prompts), padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        with torch.no_grad():
            output = self.model(tokens.input_ids.to(self.model.device), output_hidden_states=self.penultimate)
        hidden = output.hidden_states[-2] if self.penultimate else output.last_hidden_state
        rows = [{"embeds": row} for row in hidden.float().cpu()]
        if (pooled := getattr(output, "text_embeds", None)) is not None:
            for row, vector in zip(rows, pooled.float().cpu(), strict=True):
                row["pooled"] = vector
        return rows

    def count_tokens(self, prompt: str) -> int:
        """Tokens of ``prompt`` without the start and end tokens."""
        return len(self.tokenizer(prompt, truncation=False).input_ids) - 2


def load_folder(cls: Any, checkpoint: Checkpoint, part: str, dtype: torch.dtype) -> Any:
    """The text model in the subfolder ``part`` of a diffusers folder."""
    return cls.from_pretrained(checkpoint.path / part, dtype=dtype, local_files_only=True).eval().requires_grad_(False)


def load_openai(checkpoint: Checkpoint, prefix: str, *, family: str) -> Any:
    """CLIP ViT-L (quick GELU) from a single file, whose names below ``prefix`` are transformers'."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with laid_out_as(checkpoint, "text encoder", family):
        config = ldm.clip_config(checkpoint.shapes, prefix=prefix, head_dim=_HEAD_DIM, activation="quick_gelu")
    tensors = checkpoint.tensors(lambda key: key.startswith(prefix) and not key.endswith("position_ids"))
    named = {key[len(prefix) :]: value for key, value in tensors.items()}
    return _fill(CLIPTextModel, CLIPTextConfig(**config), named, checkpoint, family)


def load_open_clip(checkpoint: Checkpoint, prefix: str, *, family: str, projection: bool) -> Any:
    """An OpenCLIP text model from a single file: with its projection (SDXL's), or without its last layer (SD 2.x's).

    SD 2.x was trained on the last but one layer's output followed by the final norm, so the last layer is never run.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    names = open_clip_names({key[len(prefix) :] for key in checkpoint.shapes if key.startswith(prefix)})
    shapes = {names[key[len(prefix) :]][0]: shape for key, shape in checkpoint.shapes.items() if key[len(prefix) :] in names}
    with laid_out_as(checkpoint, "text encoder", family):
        config = ldm.clip_config(shapes, prefix="", head_dim=_HEAD_DIM, activation="gelu")
    if not projection:
        config["num_hidden_layers"] -= 1
    last = f"encoder.layers.{config['num_hidden_layers']}."
    named: dict[str, torch.Tensor] = {}
    for key, value in checkpoint.tensors(lambda key: key.startswith(prefix)).items():
        targets = names.get(key[len(prefix) :], ())
        if not targets or targets[0].startswith(last):
            continue
        parts = value.chunk(len(targets)) if len(targets) > 1 else [value]
        named.update({target: part for target, part in zip(targets, parts, strict=True)})
    stored = [key for key in (f"{prefix}text_projection", f"{prefix}text_projection.weight") if key in checkpoint.shapes]
    if projection and stored:
        matrix = checkpoint.tensors(lambda key: key == stored[0])[stored[0]]
        named["text_projection.weight"] = matrix if stored[0].endswith(".weight") else matrix.T.contiguous()
        config["projection_dim"] = named["text_projection.weight"].shape[0]
    return _fill(CLIPTextModelWithProjection if projection else CLIPTextModel, CLIPTextConfig(**config), named, checkpoint, family)


def open_clip_names(names: set[str]) -> Mapping[str, tuple[str, ...]]:
    """transformers' names for OpenCLIP's text tensors: one each, three (q, k, v) for a joined projection; without ``text_model.``."""
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


def tokenizer(checkpoint: Checkpoint, part: str = "tokenizer") -> Any:
    """The folder's own tokenizer where it has one, else the one that travels with the pack; both are CLIP's."""
    from transformers import CLIPTokenizer

    own: Path = checkpoint.path / part
    has_own = checkpoint.kind == "folder" and (own / "vocab.json").is_file()
    return CLIPTokenizer.from_pretrained(str(own if has_own else tokenizer_folder()), local_files_only=True)  # nosec B615: local


def zero_padded(tokenizer: Any) -> Any:
    """``tokenizer`` padding with token 0 (``!``), as the OpenCLIP encoders of SD 2.x and SDXL are fed."""
    tokenizer.pad_token = "!"
    return tokenizer


def _fill(cls: Any, config: Any, tensors: Mapping[str, torch.Tensor], checkpoint: Checkpoint, family: str) -> Any:
    """A ``cls`` with ``tensors``, whose names lack ``text_model.``. Raises UserError unless they are exactly the model's."""
    import torch

    with torch.device("meta"), laid_out_as(checkpoint, "text encoder", family):
        model = cls(config)
    # transformers 5.6 dropped "text_model." from CLIPTextModel's names; earlier versions have it
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


def _incomplete(checkpoint: Checkpoint, family: str, cause: str) -> UserError:
    return UserError(
        f"The text encoder of {checkpoint.name} is incomplete ({cause}).", f"Use a complete {family} checkpoint.", kind="checkpoint"
    )
