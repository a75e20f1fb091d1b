"""CLIP text encoders of single files (OpenAI's and OpenCLIP's names) and diffusers folders, and how prompts go through them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import UserError
from . import ldm
from .base import PLAIN_TEXT, TextEncoder, TextSettings, tokenizer_folder
from .checkpoint import BaseCheckpoint, from_folder, laid_out_as
from .parts import weights_variant

if TYPE_CHECKING:
    import torch

_HEAD_DIM = 64
CHUNK = 75  # tokens that fit between CLIP's start and end token
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
    """A CLIP text model and its tokenizer; ``component`` is what LoRA files call it, ``te1`` or ``te2``.

    Prompts are cut at ``settings.max_tokens`` tokens and go through the model in chunks of 75. Shorter ones are filled with the
    tokenizer's padding: the end token, or see ``zero_padded``. ``normed``: the final norm is applied whichever layer is used, as SD 1.x
    has it; SDXL uses its layer's output as it is.
    """

    def __init__(
        self, tokenizer: Any, model: Any, settings: TextSettings = PLAIN_TEXT, *, normed: bool = True, component: str = "te1"
    ) -> None:
        self.tokenizer = tokenizer
        self.model = model
        self.settings = settings
        self.normed = normed
        self.component = component

    @property
    def modules(self) -> dict[str, Any]:
        """The text model by component."""
        return {self.component: self.model}

    def tokenize(self, prompts: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        """One table per prompt: by component its token ids in chunks, (chunks, 77) int64."""
        length = self.settings.max_tokens + 2
        found = self.tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        ids = in_chunks(found.input_ids, padding=self.tokenizer.pad_token_id, end=self.tokenizer.eos_token_id)
        return [{self.component: row} for row in ids]

    def conditions(self, tokens: Sequence[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        """``embeds`` (75 x chunks + 2, width), and ``pooled`` (width,) for a model with a projection, on the model's device.

        Gradients flow where they are enabled. ``pooled`` is the first chunk's.
        """
        import torch

        # moved one by one: what torch.stack makes on the CPU is not page-locked, so that copying it would wait for the GPU
        ids = torch.stack([row[self.component].to(self.model.device, non_blocking=True) for row in tokens])
        chunks = ids.shape[1]
        skip = self.settings.clip_skip or 1
        output = self.model(ids.flatten(0, 1), output_hidden_states=skip > 1 or not self.normed)
        hidden = output.last_hidden_state if skip == 1 and self.normed else output.hidden_states[-skip]
        if skip > 1 and self.normed:
            hidden = getattr(self.model, "text_model", self.model).final_layer_norm(hidden)
        rows = [{"embeds": row} for row in joined(hidden.unflatten(0, (-1, chunks)))]
        if (pooled := getattr(output, "text_embeds", None)) is not None:
            for row, vector in zip(rows, pooled[::chunks], strict=True):
                row["pooled"] = vector
        return rows

    def encode(self, prompts: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        """``conditions`` of prompts in fp32 on the CPU, without gradients."""
        return encode(self, prompts)

    def count_tokens(self, prompt: str) -> int:
        """Tokens of ``prompt`` without the start and end tokens."""
        return len(self.tokenizer(prompt, truncation=False, verbose=False).input_ids) - 2


def encode(encoder: TextEncoder, prompts: Sequence[str]) -> list[dict[str, torch.Tensor]]:
    """What ``encoder`` gives for ``prompts``, in fp32 on the CPU, without gradients."""
    import torch

    with torch.no_grad():
        rows = encoder.conditions(encoder.tokenize(prompts))
    return [{name: tensor.float().cpu() for name, tensor in row.items()} for row in rows]


def in_chunks(ids: torch.Tensor, *, padding: int, end: int) -> torch.Tensor:
    """Token ids (batch, 75 x chunks + 2), started, ended and padded, as (batch, chunks, 77), each chunk with a start and an end.

    kohya's rule, so that a LoRA means the same in both trainers. Padded with the end token, every chunk gets the start token and the end
    token. Padded with another (SD 2.x and SDXL's second encoder), a chunk ends in the end token where its last place is text and in
    what the whole ended in elsewhere, and a chunk that begins with padding begins with the end token.
    """
    import torch

    chunks = (ids.shape[1] - 2) // CHUNK
    if chunks == 1:
        return ids[:, None]
    body = ids[:, 1:-1].unflatten(1, (chunks, CHUNK))
    starts = ids[:, None, :1].expand(-1, chunks, 1)
    ends = ids[:, None, -1:].expand(-1, chunks, 1)
    if padding != end:
        first, last = body[..., :1], body[..., -1:]
        ends = torch.where((last != end) & (last != padding), end, ends)
        body = torch.cat([torch.where(first == padding, end, first), body[..., 1:]], dim=-1)
    return torch.cat([starts, body, ends], dim=-1)


def joined(hidden: torch.Tensor) -> torch.Tensor:
    """States of chunks (batch, chunks, 77, width) as one sequence (batch, 75 x chunks + 2, width): the first chunk's start, what lies
    between each chunk's start and end, and the last chunk's end."""
    import torch

    if hidden.shape[1] == 1:
        return hidden[:, 0]
    return torch.cat([hidden[:, 0, :1], hidden[:, :, 1:-1].flatten(1, 2), hidden[:, -1, -1:]], dim=1)


def text_targets(model: Any, targets: str) -> list[str]:
    """kohya's modules of a text model: queries, keys, values and outputs of every layer's attention, and, unless ``targets`` is
    ``attention``, both layers of its MLP."""
    from torch import nn

    kinds = (".self_attn.",) if targets == "attention" else (".self_attn.", ".mlp.")
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return [name for name in linear if any(kind in name for kind in kinds)]


def load_folder(cls: Any, checkpoint: BaseCheckpoint, part: str, dtype: torch.dtype) -> Any:
    """The text model in the subfolder ``part`` of a diffusers folder."""
    folder = checkpoint.path / part
    with laid_out_as(checkpoint, part, "Stable Diffusion"):
        model = from_folder(cls, folder, dtype=dtype, variant=weights_variant(folder))
    return model.eval().requires_grad_(False)


def empty_folder(cls: Any, checkpoint: BaseCheckpoint, part: str) -> Any:
    """The same model on the ``meta`` device."""
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
    """The same model on the ``meta`` device."""
    from transformers import CLIPTextModel

    with laid_out_as(checkpoint, "text encoder", family):
        config = ldm.clip_config(checkpoint.shapes, prefix=prefix, head_dim=_HEAD_DIM, activation="quick_gelu")
        return _empty(CLIPTextModel, config)


def load_open_clip(checkpoint: BaseCheckpoint, prefix: str, *, family: str, projection: bool) -> Any:
    """An OpenCLIP text model from a single file: with its projection (SDXL's), or without its last layer (SD 2.x's).

    SD 2.x was trained on the last but one layer's output followed by the final norm, so the last layer is never run.
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
    """The same model on the ``meta`` device."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    names = open_clip_names({key[len(prefix) :] for key in checkpoint.shapes if key.startswith(prefix)})
    shapes = {names[key[len(prefix) :]][0]: shape for key, shape in checkpoint.shapes.items() if key[len(prefix) :] in names}
    with laid_out_as(checkpoint, "text encoder", family):
        config = ldm.clip_config(shapes, prefix="", head_dim=_HEAD_DIM, activation="gelu")
        if not projection:
            config["num_hidden_layers"] -= 1
        elif stored := _stored_projection(checkpoint, prefix):
            config["projection_dim"] = checkpoint.shapes[stored][0 if stored.endswith(".weight") else 1]
        return _empty(CLIPTextModelWithProjection if projection else CLIPTextModel, config)


def _stored_projection(checkpoint: BaseCheckpoint, prefix: str) -> str:
    """The projection's key: a matrix to multiply with from the left, or a linear layer's weight; empty without one."""
    return next((key for key in (f"{prefix}text_projection", f"{prefix}text_projection.weight") if key in checkpoint.shapes), "")


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


def tokenizer(checkpoint: BaseCheckpoint, part: str = "tokenizer") -> Any:
    """The folder's own tokenizer where it has one, else the one that travels with the pack; both are CLIP's."""
    from transformers import CLIPTokenizer

    own: Path = checkpoint.path / part
    has_own = checkpoint.kind == "folder" and (own / "vocab.json").is_file()
    return CLIPTokenizer.from_pretrained(str(own if has_own else tokenizer_folder()), local_files_only=True)  # nosec B615: local


def zero_padded(tokenizer: Any) -> Any:
    """``tokenizer`` padding with token 0 (``!``), as the OpenCLIP encoders of SD 2.x and SDXL are fed."""
    tokenizer.pad_token = "!"
    return tokenizer


def _empty(cls: Any, config: dict[str, Any]) -> Any:
    import torch
    from transformers import CLIPTextConfig

    with torch.device("meta"):
        return cls(CLIPTextConfig(**config)).eval().requires_grad_(False)


def _fill(model: Any, tensors: Mapping[str, torch.Tensor], checkpoint: BaseCheckpoint, family: str) -> Any:
    """``model`` (on the meta device) with ``tensors``, named without ``text_model.``. Raises UserError unless they are all of its own."""
    import torch

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


def _incomplete(checkpoint: BaseCheckpoint, family: str, cause: str) -> UserError:
    return UserError(
        f"The text encoder of {checkpoint.name} is incomplete ({cause}).", f"Use a complete {family} checkpoint.", kind="checkpoint"
    )
