"""One file of weights, .safetensors or .ckpt: its shapes and metadata without reading it, and its tensors, dequantised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import UserError
from ...core.files.reading import require_regular
from ...core.files.torch_files import InvalidTorchFile, NotOnlyTensors, check_torch_file
from .quantised_weights import QuantisedWeight, dequantised, is_companion, quantised_weights

if TYPE_CHECKING:
    import torch

_BATCH = 64  # tensors that are read and converted at a time
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class WeightsFile:
    """A .safetensors file, or a .ckpt, .pt or .pth file that holds nothing but tensors."""

    path: Path

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every weight, without reading the tensors of a .safetensors file. Scales of quantised weights are left out."""
        return {key: shape for key, (shape, _) in self._header.items() if not is_companion(key)}

    @cached_property
    def quantised(self) -> dict[str, QuantisedWeight]:
        """The quantised weights by key, which ``tensors`` returns dequantised. Raises UserError for an unknown quantisation."""
        dtypes = {key: dtype for key, (_, dtype) in self._header.items()}
        return quantised_weights(self.path.name, dtypes, self.metadata, self._read)

    @cached_property
    def metadata(self) -> dict[str, str]:
        """The ``__metadata__`` of a .safetensors file; empty for every other file."""
        if self.path.suffix.lower() != ".safetensors":
            return {}
        from safetensors import safe_open

        require_regular(self.path)
        with safe_open(str(self.path), framework="pt") as file:
            return dict(file.metadata() or {})

    def tensors(
        self, wanted: Callable[[str], bool], dtype: torch.dtype | None = None, *, channels_last: bool = False
    ) -> dict[str, torch.Tensor]:
        """The tensors whose names are ``wanted``, on the CPU.

        Floating-point tensors are converted to ``dtype``; without it, they keep the file's dtype, and quantised weights become fp32.
        ``channels_last`` sets the memory format of 4-D tensors. Tensors are converted in batches: a whole file in half precision beside
        its copy would need half as much memory again.
        """
        keys = [key for key in self.shapes if wanted(key)]
        read: dict[str, torch.Tensor] = {}
        for first in range(0, len(keys), _BATCH):
            read |= _converted(self._dequantised(keys[first : first + _BATCH]), dtype, channels_last)
        return read

    @cached_property
    def _header(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of every tensor."""
        if self.path.suffix.lower() == ".safetensors":
            return safetensors_header(self.path)
        return {key: (tuple(value.shape), str(value.dtype)) for key, value in self._ckpt_tensors.items()}

    def _dequantised(self, keys: Sequence[str]) -> dict[str, torch.Tensor]:
        stored = {key: self.quantised[key] for key in keys if key in self.quantised}
        read = self._read([*keys, *(weight.scale for weight in stored.values())])
        scales = {key: read.pop(weight.scale) for key, weight in stored.items()}
        return read | {key: dequantised(key, read[key], scales[key], weight) for key, weight in stored.items()}

    def _read(self, keys: Sequence[str]) -> dict[str, torch.Tensor]:
        """The tensors as they are stored."""
        if self.path.suffix.lower() != ".safetensors":
            return {key: self._ckpt_tensors[key] for key in keys}
        from safetensors import safe_open

        # the file stays mapped while it is open, and pages that were read count as this process's memory
        with safe_open(str(self.path), framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in keys}

    @cached_property
    def _ckpt_tensors(self) -> Mapping[str, torch.Tensor]:
        import zipfile

        import torch

        try:
            check_torch_file(self.path)
            # only the zip layout can be mapped; files from torch before 1.6 are read whole
            data: Any = torch.load(self.path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(self.path))
        except Exception as error:
            if isinstance(error, InvalidTorchFile) and not isinstance(error, NotOnlyTensors):
                raise UserError(f"{self.path.name} is damaged: {error}.", "Copy or download it again.", kind="checkpoint") from error
            raise UserError(
                f"{self.path.name} was not loaded: a .ckpt file can run code when it is opened, and this one holds more than weights.",
                "Use the .safetensors version of this checkpoint, or convert it with a tool you trust.",
                kind="checkpoint",
            ) from error
        data = data.get("state_dict", data) if isinstance(data, dict) else {}
        return {key: value for key, value in data.items() if isinstance(value, torch.Tensor)}


def safetensors_header(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every tensor of a .safetensors file. Raises UserError for a damaged file."""
    from safetensors import SafetensorError, safe_open

    try:
        require_regular(path)
        with safe_open(str(path), framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            return {key: (tuple(each.get_shape()), str(each.get_dtype())) for key, each in slices.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path.name} is damaged or not a safetensors file ({error}).",
            "Download or copy it again, and compare its size with the original's.",
            kind="checkpoint",
        ) from error


def require_no_lfs_pointer(path: Path) -> None:
    """Raise UserError when ``path`` is a Git LFS pointer instead of the file itself."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", "Check the folder's permissions.", kind="checkpoint") from error
    if start == _LFS_POINTER:
        raise UserError(
            f"{path} is a Git LFS pointer of a few lines, not the file itself: the model was cloned without its weights.",
            "Run `git lfs pull` in the model's folder, or download the file.",
            kind="checkpoint",
        )


def _converted(tensors: dict[str, torch.Tensor], dtype: torch.dtype | None, channels_last: bool) -> dict[str, torch.Tensor]:
    """``tensors`` in the dtype and memory format; those that have both already are returned as they are.

    One call copies them all: a thread that reads while another runs Python code waits 5 ms for the interpreter lock after every call.
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
