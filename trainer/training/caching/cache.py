"""The cache of latents and prompt embeddings on disk, by content hash.

A cache file is named after everything that determines its content, so an outdated one is never read. Each is written atomically, so that a
killed run leaves only whole files. A damaged file is deleted when it is read, and encoded again.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ...core.errors import UserError
from ...core.files.writing import atomic_path, remove_abandoned
from ...dataset import Item
from ...families import PLAIN_TEXT, LatentSpace, TextSettings

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
_LATENT_VERSION = "1"
_PROMPT_VERSION = "1"
_MOST_REPAIRS = 16  # of one file


@dataclass(frozen=True)
class Cache:
    """Cache files of one base checkpoint. ``identity`` is the checkpoint's, ``latent_space`` its family's; ``text``: how prompts are read;
    ``text_lora``: the hash of a LoRA file that changes the text encoder, empty without one."""

    folder: Path
    identity: str
    latent_space: LatentSpace
    text: TextSettings = PLAIN_TEXT
    text_lora: str = ""

    def latent_path(self, item: Item, flipped: bool = False) -> Path:
        """The file of the latent of ``item``, or of its mirror image."""
        key = _digest("latent", _LATENT_VERSION, self.identity, item.sha256, "flipped" if flipped else "")
        return self.folder / "latents" / key[:2] / f"{key}.safetensors"

    def prompt_path(self, prompt: str) -> Path:
        """The file of the conditioning of ``prompt``."""
        settings: tuple[str, ...] = () if self.text == PLAIN_TEXT else (f"{self.text.max_tokens} tokens, clip skip {self.text.clip_skip}",)
        settings += () if self.text.empty_prompt == "comfyui" else (f"empty prompt of {self.text.empty_prompt}",)
        settings += () if self.text.part == "whole" else (f"{self.text.part} part",)
        changed = (f"LoRA {self.text_lora}",) if self.text_lora else ()
        key = _digest("prompt", _PROMPT_VERSION, self.identity, prompt, *settings, *changed)
        return self.folder / "prompts" / key[:2] / f"{key}.safetensors"

    def latent(self, item: Item, flipped: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the VAE's posterior, scaled by the VAE's factor, each (channels, rows, columns), fp32.

        Raises UserError of the kind ``cache`` when it is missing or damaged.
        """
        tensors = _read(self.latent_path(item, flipped))
        if tensors is not None and not _is_latent(tensors, self.latent_space.shape(item.width, item.height)):
            self.latent_path(item, flipped).unlink(missing_ok=True)
            tensors = None
        if tensors is None:
            raise UserError(
                f"The cached latent of {item.file} is missing or damaged.", "Start the run again, which encodes it again.", kind="cache"
            )
        return tensors["mean"], tensors["std"]

    def prompt(self, prompt: str) -> dict[str, torch.Tensor]:
        """What the family's text encoder, or its front part, makes of ``prompt``. Raises UserError as ``latent`` does."""
        tensors = _read(self.prompt_path(prompt))
        if tensors is None:
            raise UserError(
                f"The cached prompt {prompt[:60]!r} is missing or damaged.", "Start the run again, which encodes it again.", kind="cache"
            )
        return tensors

    def write_latent(self, item: Item, flipped: bool, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Keep what ``latent`` returns."""
        _write(self.latent_path(item, flipped), {"mean": mean, "std": std})

    def write_prompt(self, prompt: str, conditioning: dict[str, torch.Tensor]) -> None:
        """Keep what ``prompt`` returns."""
        _write(self.prompt_path(prompt), conditioning)


class RepairingCache:
    """Reads ``cache``. When something is missing or damaged, ``rebuild`` encodes everything that is missing."""

    def __init__(self, cache: Cache, rebuild: Callable[[], None]) -> None:
        self._cache, self._rebuild = cache, rebuild

    def latent(self, item: Item, flipped: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`Cache.latent`."""
        return self._repaired(lambda: self._cache.latent(item, flipped))

    def prompt(self, prompt: str) -> dict[str, torch.Tensor]:
        """See :meth:`Cache.prompt`."""
        return self._repaired(lambda: self._cache.prompt(prompt))

    def _repaired(self, read: Callable[[], T]) -> T:
        for _ in range(_MOST_REPAIRS):
            try:
                return read()
            except UserError as error:
                if error.kind != "cache":
                    raise
                self._rebuild()
        return read()


CacheReader = Cache | RepairingCache


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _read(path: Path) -> dict[str, torch.Tensor] | None:
    """The tensors of a cache file, or None when it is missing or damaged; a damaged one is deleted."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            # cloned, because the file is mapped into memory: on Windows, nobody can delete or replace a mapped file
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
            if (file.metadata() or {}).get("crc32") == _checksum(tensors):
                return tensors
    except (OSError, SafetensorError, TypeError, ValueError, RuntimeError):
        pass
    path.unlink(missing_ok=True)
    return None


def _is_latent(tensors: dict[str, torch.Tensor], shape: tuple[int, int, int]) -> bool:
    """Whether these are a latent of this shape: a checksum only shows that a file is as it was written."""
    parts = [tensors.get(name) for name in ("mean", "std")]
    return all(part is not None and tuple(part.shape) == shape and bool(part.isfinite().all()) for part in parts)


def _write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    remove_abandoned(path.parent)  # of a run that was killed while it wrote this file
    on_cpu = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(on_cpu, str(temporary), metadata={"crc32": _checksum(on_cpu)})


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].numpy().tobytes(), value)
    return f"{value:08x}"
