"""Encode captions and prompts into conditionings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ...adapters.frozen_lora import merge_into
from ...core.disk_errors import free_bytes
from ...core.errors import Cancelled, UserError
from ...core.library_imports import import_text_models
from ...families import BaseCheckpoint, Family
from .cache import Cache
from .latent_cache import Progress
from .weighted_prompts import encode_keys

if TYPE_CHECKING:
    import torch

    from ...lorafile import LoraModule

_MANY_GB = 1.0
_BATCH_SIZE = 16


def fill_prompts(
    cache: Cache,
    prompts: Sequence[str],
    family: Family,
    checkpoint: BaseCheckpoint,
    device: torch.device,
    progress: Progress,
    stop: Callable[[], bool],
    *,
    warn: Callable[[str], None] | None = None,
    frozen: Sequence[LoraModule] = (),
) -> int:
    """Encode the prompts that are missing; returns their number. The text encoder (fp32) is loaded only if there are any.

    ``frozen``: layers of a LoRA that change it. ``warn`` gets a message when the conditionings take many gigabytes. Raises UserError when
    the disk has no space for them, and Cancelled.
    """
    missing = [prompt for prompt in dict.fromkeys(prompts) if not cache.prompt_path(prompt).is_file()]
    if not missing:
        return 0
    import torch

    import_text_models()
    encoder = family.load_text_encoder(checkpoint, torch.float32, device, cache.text)
    merge_into(encoder.modules, frozen)
    for start in range(0, len(missing), _BATCH_SIZE):
        if stop():
            raise Cancelled
        batch = missing[start : start + _BATCH_SIZE]
        encoded = encode_keys(encoder, batch)
        if start == 0:
            _require_space(cache, len(missing), sum(tensor.nbytes for tensor in encoded[0].values()), warn)
        for prompt, conditioning in zip(batch, encoded, strict=True):
            cache.write_prompt(prompt, conditioning)
        progress(min(start + _BATCH_SIZE, len(missing)), len(missing))
    return len(missing)


def _require_space(cache: Cache, count: int, each: int, warn: Callable[[str], None] | None) -> None:
    """A caption that is shuffled or loses tags is a new prompt every time that it is read: thousands in a long run."""
    size, left = count * each / 1e9, free_bytes(cache.folder) / 1e9
    advice = "Shuffling and dropping tags make every caption a new prompt each time: without them, or with fewer epochs, there are fewer."
    if size > left:
        raise UserError(
            f"The run reads {count} different captions, which take {size:.1f} GB encoded; {cache.folder} has {left:.1f} GB left.",
            f"Free some space, or move ComfyUI's output folder. {advice}",
            kind="disk",
        )
    if size > _MANY_GB and warn is not None:
        warn(f"The run reads {count} different captions; encoded they take {size:.1f} GB in {cache.folder}. {advice}")
