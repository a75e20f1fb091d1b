"""Latents and prompt embeddings, encoded once and kept on disk by content hash.

A cache file is named after everything that determines it, so a stale one is never read; each is written atomically, so
a killed run leaves only whole files. A damaged file is rebuilt.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapters.frozen_lora import merge_into
from ..core.diagnosis import is_out_of_memory
from ..core.disk_errors import free_bytes
from ..core.errors import Cancelled, UserError
from ..core.files.reading import read_regular
from ..core.files.writing import atomic_path
from ..core.library_imports import import_text_models
from ..dataset import Dataset, Item
from ..families import PLAIN_TEXT, BaseCheckpoint, Family, TextSettings
from .weighted_prompts import encode_keys

if TYPE_CHECKING:
    import torch

    from ..lorafile import LoraModule

Progress = Callable[[int, int], None]
_LATENT_VERSION = "1"
_PROMPT_VERSION = "1"
_MANY_GB = 1.0  # of captions
_LARGEST_IMAGE = 1 << 30  # bytes


@dataclass(frozen=True)
class Cache:
    """Cache files of one base checkpoint. ``identity`` is the checkpoint's, ``text`` how prompts are read, ``text_lora`` the hash of a LoRA
    file that changes the text encoder (empty: none does)."""

    folder: Path
    identity: str
    text: TextSettings = PLAIN_TEXT
    text_lora: str = ""

    def latent_path(self, item: Item, flipped: bool = False) -> Path:
        """Where the latent of ``item``, or of its mirror image, lies."""
        key = _digest("latent", _LATENT_VERSION, self.identity, item.sha256, "flipped" if flipped else "")
        return self.folder / "latents" / key[:2] / f"{key}.safetensors"

    def prompt_path(self, prompt: str) -> Path:
        """Where the conditioning of ``prompt`` lies."""
        settings = () if self.text == PLAIN_TEXT else (f"{self.text.max_tokens} tokens, clip skip {self.text.clip_skip}",)
        changed = (f"LoRA {self.text_lora}",) if self.text_lora else ()
        key = _digest("prompt", _PROMPT_VERSION, self.identity, prompt, *settings, *changed)
        return self.folder / "prompts" / key[:2] / f"{key}.safetensors"

    def latent(self, item: Item, flipped: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the VAE's posterior, scaled by the VAE's factor, each (4, height/8, width/8), fp32."""
        tensors = _read(self.latent_path(item, flipped))
        if tensors is not None and not _fits(tensors, item):
            self.latent_path(item, flipped).unlink(missing_ok=True)
            tensors = None
        if tensors is None:
            raise UserError(
                f"The cached latent of {item.file} vanished or is damaged.", "Start the run again: it is encoded anew.", kind="cache"
            )
        return tensors["mean"], tensors["std"]

    def prompt(self, prompt: str) -> dict[str, torch.Tensor]:
        """The conditioning of ``prompt`` as the family's text encoder gave it."""
        tensors = _read(self.prompt_path(prompt))
        if tensors is None:
            raise UserError(
                f"The cached prompt {prompt[:60]!r} vanished or is damaged.", "Start the run again: it is encoded anew.", kind="cache"
            )
        return tensors


def missing_latents(cache: Cache, dataset: Dataset) -> list[tuple[Path, Item, bool]]:
    """What is to be encoded: its dataset's folder, the picture, whether mirrored."""
    wanted: dict[Path, tuple[Path, Item, bool]] = {}  # by cache file
    for index, item in enumerate(dataset.items):
        member = dataset.member(index)
        for flipped in (False, True) if member.training.flip else (False,):
            wanted.setdefault(cache.latent_path(item, flipped), (member.path, item, flipped))
    return [what for path, what in wanted.items() if not path.is_file()]


def fill_latents(
    cache: Cache,
    dataset: Dataset,
    family: Family,
    checkpoint: BaseCheckpoint,
    device: torch.device,
    progress: Progress,
    stop: Callable[[], bool],
) -> int:
    """Encode the images whose latents are missing; returns how many were. The VAE is loaded only when one is.

    The VAE runs in fp32: SD 1.x's overflows in fp16.
    """
    missing = missing_latents(cache, dataset)
    if not missing:
        return 0
    import torch

    vae: Any = family.load_vae(checkpoint, torch.float32).to(device)
    factor = float(vae.config.scaling_factor)
    by_size: dict[tuple[int, int], list[tuple[Path, Item, bool]]] = {}
    for folder, item, flipped in missing:
        by_size.setdefault((item.width, item.height), []).append((folder, item, flipped))
    done = 0
    for (width, height), members in by_size.items():
        batch_size = 1 if device.type == "cpu" else max(1, 512 * 512 // (width * height))  # more would need more memory than training does
        for start in range(0, len(members), batch_size):
            if stop():
                raise Cancelled
            batch = members[start : start + batch_size]
            images = [load_pixels(folder, item) for folder, item, _ in batch]
            pixels = torch.stack([image.flip(-1) if flipped else image for image, (*_, flipped) in zip(images, batch, strict=True)])
            for (_, item, flipped), mean, std in zip(batch, *encode_latents(vae, pixels.to(device)), strict=True):
                if not torch.isfinite(mean).all():
                    raise UserError(
                        f"The VAE of {checkpoint.name} gives no finite latent for {item.file}.",
                        "Its VAE is damaged or overflows; use a checkpoint with a repaired (fp16-fix) VAE.",
                        kind="checkpoint",
                    )
                _write(cache.latent_path(item, flipped), {"mean": mean * factor, "std": std * factor})
            done += len(batch)
            progress(done, len(missing))
    return len(missing)


def encode_latents(vae: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the posterior of ``pixels`` (batch, 3, height, width), each (batch, 4, height/8, width/8).

    A batch for which memory does not suffice is encoded in halves: what fits depends on the GPU and on what else runs there.
    """
    import torch

    try:
        with torch.no_grad():
            posterior = vae.encode(pixels).latent_dist
        return posterior.mean, posterior.std
    except Exception as error:
        if len(pixels) == 1 or not is_out_of_memory(error):
            raise
    if pixels.device.type == "cuda":  # outside of the except: there, the failed pass would still hold its memory
        torch.cuda.empty_cache()
    halves = [encode_latents(vae, half) for half in pixels.tensor_split(2)]
    return torch.cat([mean for mean, _ in halves]), torch.cat([std for _, std in halves])


def fill_prompts(
    cache: Cache,
    prompts: Sequence[str],
    family: Family,
    checkpoint: BaseCheckpoint,
    device: torch.device,
    progress: Progress,
    stop: Callable[[], bool],
    batch_size: int = 16,
    *,
    warn: Callable[[str], None] | None = None,
    frozen: Sequence[LoraModule] = (),
) -> int:
    """Encode the prompts that are missing; returns how many were. The text encoder (fp32) is loaded only when one is.

    ``frozen``: layers of a LoRA that change it. ``warn`` is told of many gigabytes. Raises UserError when they are more than the disk has
    left.
    """
    missing = [prompt for prompt in dict.fromkeys(prompts) if not cache.prompt_path(prompt).is_file()]
    if not missing:
        return 0
    import torch

    import_text_models()
    encoder = family.load_text_encoder(checkpoint, torch.float32, device, cache.text)
    merge_into(encoder.modules, frozen)
    for start in range(0, len(missing), batch_size):
        if stop():
            raise Cancelled
        batch = missing[start : start + batch_size]
        encoded = encode_keys(encoder, batch)
        if start == 0:
            _require_room(cache, len(missing), sum(tensor.nbytes for tensor in encoded[0].values()), warn)
        for prompt, condition in zip(batch, encoded, strict=True):
            _write(cache.prompt_path(prompt), condition)
        progress(min(start + batch_size, len(missing)), len(missing))
    return len(missing)


def _require_room(cache: Cache, count: int, each: int, warn: Callable[[str], None] | None) -> None:
    """Captions that are shuffled or lose tags are other prompts every time that they are read: thousands for a long run."""
    size, left = count * each / 1e9, free_bytes(cache.folder) / 1e9
    fewer = "Shuffling and dropping tags make every caption another prompt each time: without them, or with fewer epochs, there are fewer."
    if size > left:
        raise UserError(
            f"The run reads {count} different captions, which take {size:.1f} GB encoded; {cache.folder} has {left:.1f} GB left.",
            f"Make room, or move ComfyUI's output folder. {fewer}",
            kind="disk",
        )
    if size > _MANY_GB and warn is not None:
        warn(f"The run reads {count} different captions; encoded they take {size:.1f} GB in {cache.folder}. {fewer}")


def load_pixels(folder: Path, item: Item) -> torch.Tensor:
    """The image, its file relative to the dataset's ``folder``, as fp32 (3, height, width) in -1..1."""
    import numpy as np
    import torch

    from ..core.files.image_file import load_image

    try:
        data = read_regular(folder / item.file, _LARGEST_IMAGE)
        if hashlib.sha256(data).hexdigest() != item.sha256:  # else its latent would be kept under the name of another picture's
            raise OSError("it is not the file that its manifest names")
        array = np.asarray(load_image(data), dtype=np.float32)
    except OSError as error:
        raise UserError(
            f"The dataset image {item.file} cannot be read ({error}).",
            "The dataset changed after it was prepared: run Dataset Prep again.",
            kind="dataset",
        ) from error
    if array.shape[:2] != (item.height, item.width):
        raise UserError(
            f"The dataset image {item.file} is {array.shape[1]}x{array.shape[0]}, its manifest says {item.width}x{item.height}.",
            "The dataset changed after it was prepared: run Dataset Prep again.",
            kind="dataset",
        )
    return torch.from_numpy(array).permute(2, 0, 1) / 127.5 - 1.0


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _read(path: Path) -> dict[str, torch.Tensor] | None:
    """The tensors of a cache file, or None when it is missing or damaged; a damaged one is deleted, so that it is made anew."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            # copied out of the file, which is mapped: Windows lets nobody delete or replace a mapped one
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
            if (file.metadata() or {}).get("crc32") == _checksum(tensors):
                return tensors
    except (OSError, SafetensorError, TypeError, ValueError, RuntimeError):
        pass
    path.unlink(missing_ok=True)
    return None


def _fits(tensors: dict[str, torch.Tensor], item: Item) -> bool:
    """Whether these are a latent of ``item``: a checksum only says that a file is as somebody wrote it."""
    wanted = (item.height // 8, item.width // 8)
    parts = [tensors.get(name) for name in ("mean", "std")]
    return all(part is not None and tuple(part.shape)[1:] == wanted and bool(part.isfinite().all()) for part in parts)


def _write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    whole = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(whole, str(temporary), metadata={"crc32": _checksum(whole)})


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].numpy().tobytes(), value)
    return f"{value:08x}"
