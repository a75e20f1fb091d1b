"""Opening a base checkpoint: a single file, a diffusers folder, or a hub id; its identity and the shapes inside."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..core.errors import UserError
from ..core.files.reading import file_stamp, sha256_file
from ..core.files.torch_files import FalseTorchFile, NotOnlyTensors, check_torch_file
from ..core.files.writing import write_atomic
from . import quantised

if TYPE_CHECKING:
    import torch
    from torch import nn


# what reading widths from shapes and filling a model raise; NotImplementedError: weights that were never filled in
_MISSHAPEN = (NotImplementedError, ValueError, KeyError, IndexError, TypeError, StopIteration, ZeroDivisionError, RuntimeError)
_READ_AT_ONCE = 64  # tensors


class OwnVae(Protocol):
    """A VAE from a file or folder (``folder``) of its own, in place of the checkpoint's: see vae.py."""

    @property
    def path(self) -> Path:
        """Where it lies."""
        ...

    @property
    def folder(self) -> bool:
        """Whether ``path`` is a diffusers folder."""
        ...

    @property
    def name(self) -> str:
        """The name of its file or folder."""
        ...

    def identity(self, cache_dir: Path | None = None, *, full: bool = False) -> str:
        """SHA-256 of its content."""
        ...

    def load(self, dtype: torch.dtype, scaling_factor: float) -> nn.Module:
        """diffusers' model, frozen, on the CPU."""
        ...


@dataclass(frozen=True)
class BaseCheckpoint:
    """A base checkpoint on disk. ``kind`` is ``"file"`` (original layout) or ``"folder"`` (diffusers layout)."""

    path: Path
    kind: str
    vae: OwnVae | None = None  # in place of its own

    @property
    def name(self) -> str:
        """The name people know it by: the file name with its extension, or the folder's name."""
        return self.path.name

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of a single file, without reading the tensors of a .safetensors file; scales of quantised weights are
        not among them."""
        return {key: shape for key, (shape, _) in self._header.items() if not quantised.is_companion(key)}

    @cached_property
    def scaled(self) -> dict[str, quantised.Scaled]:
        """The quantised weights by key, which ``tensors`` gives as the numbers that they stand for. Raises UserError for a way of
        quantising that is not known."""
        dtypes = {key: dtype for key, (_, dtype) in self._header.items()}
        return quantised.scaled_weights(self.name, dtypes, self.metadata, self._read)

    @cached_property
    def metadata(self) -> dict[str, str]:
        """The ``__metadata__`` of a .safetensors file; empty for everything else."""
        if self.path.suffix.lower() != ".safetensors":
            return {}
        from safetensors import safe_open

        with safe_open(str(self.path), framework="pt") as file:
            return dict(file.metadata() or {})

    def tensors(
        self, wanted: Callable[[str], bool], dtype: torch.dtype | None = None, *, channels_last: bool = False
    ) -> dict[str, torch.Tensor]:
        """The tensors whose names are ``wanted``, on the CPU, in the dtype of the file (quantised ones in fp32), or the floating ones in
        ``dtype``; ``channels_last``: those of convolutions in that memory layout.

        They are converted in portions, as they are read: a whole file in half precision beside its copy would take half as much memory
        again.
        """
        keys = [key for key in self.shapes if wanted(key)]
        read: dict[str, torch.Tensor] = {}
        for first in range(0, len(keys), _READ_AT_ONCE):
            read |= _converted(self._unscaled(keys[first : first + _READ_AT_ONCE]), dtype, channels_last)
        return read

    def identity(self, cache_dir: Path | None = None, *, full: bool = False) -> str:
        """``own_identity`` with that of the VAE that is used in place of its own, if one is."""
        own = self.own_identity(cache_dir, full=full)
        if self.vae is None:
            return own
        import hashlib

        return hashlib.sha256(f"{own} with the VAE {self.vae.identity(cache_dir, full=full)}".encode()).hexdigest()

    def own_identity(self, cache_dir: Path | None = None, *, full: bool = False) -> str:
        """SHA-256 that names this base: of the file's bytes, or of the folder's configuration and weight files.

        With ``cache_dir`` the digest of an unchanged file (same size, times and inode) is remembered there; ``full`` reads it again.
        """
        if self.kind == "file":
            return cached_digest(self.path, cache_dir, full)
        import hashlib

        digest = hashlib.sha256()
        for part in sorted(self.path.rglob("*")):
            relative = part.relative_to(self.path)
            if part.is_file() and relative.parts[0] in ("unet", "vae", "text_encoder", "text_encoder_2", "scheduler", "model_index.json"):
                digest.update(f"{relative.as_posix()}\0{cached_digest(part, cache_dir, full)}\n".encode())
        return digest.hexdigest()

    @cached_property
    def _header(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of every tensor of a single file."""
        if self.path.suffix.lower() == ".safetensors":
            return safetensors_header(self.path)
        return {key: (tuple(value.shape), str(value.dtype)) for key, value in self._ckpt_tensors.items()}

    def _unscaled(self, keys: Sequence[str]) -> dict[str, torch.Tensor]:
        """These tensors, quantised weights as what they stand for."""
        stored = {key: self.scaled[key] for key in keys if key in self.scaled}
        read = self._read([*keys, *(each.scale for each in stored.values())])
        scales = {key: read.pop(each.scale) for key, each in stored.items()}
        return read | {key: quantised.dequantised(key, read[key], scales[key], each) for key, each in stored.items()}

    def _read(self, keys: Sequence[str]) -> dict[str, torch.Tensor]:
        """These tensors as they are stored."""
        if self.path.suffix.lower() != ".safetensors":
            return {key: self._ckpt_tensors[key] for key in keys}
        from safetensors import safe_open

        # the file is mapped while it is open, and what was read of it stays in this process's memory
        with safe_open(str(self.path), framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in keys}

    @cached_property
    def _ckpt_tensors(self) -> Mapping[str, torch.Tensor]:
        import zipfile

        import torch

        try:
            check_torch_file(self.path)
            # only the zip layout can be mapped; files of torch before 1.6 are read whole
            data: Any = torch.load(self.path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(self.path))
        except Exception as error:
            if isinstance(error, FalseTorchFile) and not isinstance(error, NotOnlyTensors):
                raise UserError(f"{self.path.name} is damaged: {error}.", "Copy or download it again.", kind="checkpoint") from error
            raise UserError(
                f"{self.path.name} was not loaded: a .ckpt file can run code when it is opened, and this one holds more than weights.",
                "Use the .safetensors version of this checkpoint, or convert it with a tool you trust.",
                kind="checkpoint",
            ) from error
        data = data.get("state_dict", data) if isinstance(data, dict) else {}
        return {key: value for key, value in data.items() if isinstance(value, torch.Tensor)}


def from_folder(cls: Any, path: Path, **options: Any) -> Any:
    """A model of diffusers or transformers from ``path``, never from the hub. Raises NotImplementedError where weights are missing, which
    both would leave random with no more than a line in a log."""
    try:
        model, report = cls.from_pretrained(str(path), local_files_only=True, output_loading_info=True, **options)
    except OSError as error:
        raise ValueError(str(error)) from error
    if any(not key.endswith("position_ids") for key in report["missing_keys"]):
        raise NotImplementedError
    return model


@contextmanager
def laid_out_as(checkpoint: BaseCheckpoint, part: str, title: str) -> Iterator[None]:
    """Whatever goes wrong inside because tensors are missing or have other shapes, as a UserError that names the file."""
    try:
        yield
    except _MISSHAPEN as error:
        if "memory" in str(error):
            raise
        text = str(error).strip()
        first = "tensors are missing" if isinstance(error, NotImplementedError) else text.splitlines()[-1].strip()[:200] or repr(error)
        raise UserError(
            f"The {part} of {checkpoint.name} is incomplete or of an unusual layout ({first}).",
            f"Use a complete {title} checkpoint; if this one was downloaded or merged, do that again.",
            kind="checkpoint",
        ) from error


def _converted(tensors: dict[str, torch.Tensor], dtype: torch.dtype | None, channels_last: bool) -> dict[str, torch.Tensor]:
    """The floating ones in ``dtype``, those of convolutions in the memory layout asked for; what is both already, as it is.

    All are copied by one call: a thread that reads while another runs Python waits 5 ms for its turn after every call.
    """
    import torch

    copies: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        wanted = tensor.dtype if dtype is None or not tensor.is_floating_point() else dtype
        layout = torch.channels_last if channels_last and tensor.dim() == 4 else torch.contiguous_format
        if wanted != tensor.dtype or not tensor.is_contiguous(memory_format=layout):
            copies[key] = torch.empty(tensor.shape, dtype=wanted, memory_format=layout)
    if copies:
        torch._foreach_copy_(list(copies.values()), [tensors[key] for key in copies])
    return tensors | copies


def safetensors_header(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            return {key: (tuple(each.get_shape()), str(each.get_dtype())) for key, each in slices.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path.name} is damaged or not a safetensors file ({error}).",
            "Download or copy it again; compare its size with the original.",
            kind="checkpoint",
        ) from error


def cached_digest(path: Path, cache_dir: Path | None, full: bool) -> str:
    if cache_dir is None:
        return sha256_file(path)
    stamp = file_stamp(path)
    record = cache_dir / "checkpoint-hashes.json"
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
        if not isinstance(known, dict):
            known = {}
    except (OSError, ValueError, RecursionError):
        known = {}
    key = f"{path}|{stamp}"
    if not full and isinstance(known.get(key), str):
        return str(known[key])
    digest = sha256_file(path)
    fresh = {k: v for k, v in known.items() if not k.startswith(f"{path}|")} | {key: digest}
    write_atomic(record, json.dumps(fresh, indent=1))
    return digest
