"""CLIP text encoders: tokenize prompts, split long ones into chunks, and encode them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.base_checkpoint import BaseCheckpoint
from ..interface import PLAIN_TEXT, TEXT_CHUNK, TextEncoder, TextSettings

if TYPE_CHECKING:
    import torch


class ClipText:
    """A CLIP text model and its tokenizer. ``component`` is its name in LoRA files, ``te1`` or ``te2``.

    Prompts are truncated at ``settings.max_tokens`` tokens and encoded in chunks of 75. Shorter prompts are padded with the tokenizer's
    padding token: the end token, or ``!`` (see ``zero_padded``). ``normed``: the final norm is applied whichever layer is used, as in
    SD 1.x. SDXL uses the layer's output without it.
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
        """Token ids of each prompt by component, (chunks, 77) int64."""
        length = self.settings.max_tokens + 2
        found = self.tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        ids = in_chunks(found.input_ids, padding=self.tokenizer.pad_token_id, end=self.tokenizer.eos_token_id)
        return [{self.component: row} for row in ids]

    def conditions(self, tokens: Sequence[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        """``embeds`` (75 x chunks + 2, width) and, for a model with a projection, ``pooled`` (width,) of the first chunk, on the model's
        device. Gradients flow where they are enabled."""
        import torch

        # moved one by one: torch.stack on the CPU gives memory that is not page-locked, and copying it would wait for the GPU
        ids = torch.stack([row[self.component].to(self.model.device, non_blocking=True) for row in tokens])
        chunks = ids.shape[1]
        skip = self.settings.clip_skip or 1
        output = self.model(ids.flatten(0, 1), output_hidden_states=skip > 1 or not self.normed)
        hidden = output.last_hidden_state if skip == 1 and self.normed else output.hidden_states[-skip]
        if skip > 1 and self.normed:
            hidden = getattr(self.model, "text_model", self.model).final_layer_norm(hidden)
        rows = [{"embeds": row} for row in join_chunks(hidden.unflatten(0, (-1, chunks)))]
        if (pooled := getattr(output, "text_embeds", None)) is not None:
            for row, vector in zip(rows, pooled[::chunks], strict=True):
                row["pooled"] = vector
        return rows

    def longest_input(self) -> dict[str, torch.Tensor]:
        """Token ids of as many chunks as are read."""
        import torch

        return {self.component: torch.zeros(self.settings.max_tokens // TEXT_CHUNK, TEXT_CHUNK + 2, device="meta", dtype=torch.int64)}

    def encode(self, prompts: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        """``conditions`` of prompts in fp32 on the CPU, without gradients."""
        return encode(self, prompts)

    def apply_weights(
        self, parts: Sequence[tuple[str, float]], row: dict[str, torch.Tensor], empty: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """See :func:`apply_weights`."""
        return apply_weights(self, parts, row, empty)

    def count_tokens(self, prompt: str) -> int:
        """Number of tokens in ``prompt``, without the start and end tokens."""
        return len(self.tokenizer(prompt, truncation=False, verbose=False).input_ids) - 2


def encode(encoder: TextEncoder, prompts: Sequence[str]) -> list[dict[str, torch.Tensor]]:
    """The conditioning of ``prompts`` in fp32 on the CPU, without gradients."""
    import torch

    with torch.no_grad():
        rows = encoder.conditions(encoder.tokenize(prompts))
    return [{name: tensor.float().cpu() for name, tensor in row.items()} for row in rows]


def apply_weights(
    encoder: TextEncoder, parts: Sequence[tuple[str, float]], row: dict[str, torch.Tensor], empty: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """``row``, the conditioning of a prompt in ``parts`` (text, weight), with these weights.

    As in ComfyUI, each token's embedding z is moved away from, or towards, that of the empty prompt at the same place, e (``empty``):
    ``e + w (z - e)``. The pooled embedding has no weights.
    """
    import torch

    weights = [weight for text, weight in parts for _ in range(encoder.count_tokens(text))]
    embeds, base = row["embeds"], empty["embeds"]
    places = torch.ones(len(embeds), 1, dtype=embeds.dtype, device=embeds.device)
    inside = weights[: len(embeds) - 2]  # the start and end tokens have no weight, and tokens that were cut off have no place
    places[1 : 1 + len(inside), 0] = torch.tensor(inside, dtype=embeds.dtype)
    return {**row, "embeds": torch.where(places == 1, embeds, base + places * (embeds - base))}


def in_chunks(ids: torch.Tensor, *, padding: int, end: int) -> torch.Tensor:
    """Split token ids (batch, 75 x chunks + 2), padded and with one start and one end token, into (batch, chunks, 77).

    This follows kohya's sd-scripts, so that a LoRA means the same in both trainers. When padding is the end token, every chunk gets a
    start and an end token. With another padding token (SD 2.x and SDXL's second encoder), a chunk whose last position is text gets the
    end token, any other chunk gets the last token of the whole sequence, and a chunk that would begin with padding begins with the end
    token.
    """
    import torch

    chunks = (ids.shape[1] - 2) // TEXT_CHUNK
    if chunks == 1:
        return ids[:, None]
    body = ids[:, 1:-1].unflatten(1, (chunks, TEXT_CHUNK))
    starts = ids[:, None, :1].expand(-1, chunks, 1)
    ends = ids[:, None, -1:].expand(-1, chunks, 1)
    if padding != end:
        first, last = body[..., :1], body[..., -1:]
        ends = torch.where((last != end) & (last != padding), end, ends)
        body = torch.cat([torch.where(first == padding, end, first), body[..., 1:]], dim=-1)
    return torch.cat([starts, body, ends], dim=-1)


def join_chunks(hidden: torch.Tensor) -> torch.Tensor:
    """Join hidden states of chunks (batch, chunks, 77, width) into one sequence (batch, 75 x chunks + 2, width): the first chunk's start
    token, the inner tokens of every chunk, and the last chunk's end token."""
    import torch

    if hidden.shape[1] == 1:
        return hidden[:, 0]
    return torch.cat([hidden[:, 0, :1], hidden[:, :, 1:-1].flatten(1, 2), hidden[:, -1, -1:]], dim=1)


def text_targets(model: Any, targets: str) -> list[str]:
    """kohya's target modules of a text model: q, k, v and out of every attention and, unless ``targets`` is ``attention``, both layers of
    every MLP."""
    from torch import nn

    kinds = (".self_attn.",) if targets == "attention" else (".self_attn.", ".mlp.")
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return [name for name in linear if any(kind in name for kind in kinds)]


def tokenizer(checkpoint: BaseCheckpoint, part: str = "tokenizer") -> Any:
    """CLIP's tokenizer from a folder that has one, otherwise the bundled copy."""
    from transformers import CLIPTokenizer

    own: Path = checkpoint.path / part
    has_own = checkpoint.kind == "folder" and (own / "vocab.json").is_file()
    return CLIPTokenizer.from_pretrained(str(own if has_own else tokenizer_folder()), local_files_only=True)  # nosec B615: local


def zero_padded(tokenizer: Any) -> Any:
    """``tokenizer`` with token 0 (``!``) as padding, which the OpenCLIP encoders of SD 2.x and SDXL expect."""
    tokenizer.pad_token = "!"
    return tokenizer


def tokenizer_folder() -> Path:
    """The folder of the bundled CLIP tokenizer."""
    return Path(__file__).parents[1] / "assets" / "clip_tokenizer"
