"""Load the tensors of a LoRA file: .safetensors after checking the header, or .pt that holds nothing but tensors."""

from __future__ import annotations

import pickle  # nosec B403: for the name of its error; files are opened with weights_only=True
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ...core.errors import UserError
from ...core.files.torch_files import InvalidTorchFile, NotOnlyTensors, check_torch_file
from ...core.messages import File, Message
from .. import container

FOLDER_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors", "adapter_model.bin", "pytorch_lora_weights.bin")
PICKLED = (".pt", ".bin", ".ckpt", ".pth")
_MOST_TENSORS = 50_000  # ten times the largest LoRA: a LoHa of every layer of SDXL and both text encoders
_SLACK = 16 << 20  # bytes by which tensors may exceed their file, because layers may share a tensor (one alpha for all)


@dataclass(frozen=True)
class RawFile:
    """The contents of a file: named tensors, or a list of them (cloneofsimo's .pt). A .safetensors file stays mapped while this exists."""

    path: Path
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    listed: tuple[torch.Tensor, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


def load_tensors(path: Path) -> RawFile:
    """Read ``path``: a .safetensors, a .pt/.bin loaded with ``weights_only=True``, or a PEFT/diffusers adapter folder.

    Raises UserError when it is missing, damaged, or holds anything but tensors.
    """
    path = Path(path)
    if path.is_dir():
        found = next((path / name for name in FOLDER_FILES if (path / name).is_file()), None)
        if found is None:
            raise UserError(
                Message("The folder ", File(str(path)), " holds no LoRA."),
                f"It should hold one of: {', '.join(FOLDER_FILES)}.",
                kind="lora",
            )
        path = found
    if not path.is_file():
        raise UserError(Message("The file ", File(str(path)), " does not exist."), "Check the path.", kind="lora")
    if path.suffix.lower() in PICKLED:
        return _load_pickled(path)
    if _is_zip(path):
        raise UserError(f"{path.name} is a PyTorch file with the wrong extension.", "Rename it to .pt.", kind="lora")
    header = container.read_safetensors_header(path)
    _check_count(path, len(header.tensors))
    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError, RuntimeError, OSError) as error:
        raise UserError(f"{path.name} cannot be read as safetensors: {error}.", "Download or export it again.", kind="lora") from error
    return RawFile(path, tensors, metadata=header.metadata)


def _load_pickled(path: Path) -> RawFile:
    try:
        check_torch_file(path)
        data: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, NotOnlyTensors) as error:
        raise UserError(
            f"{path.name} holds more than tensors: loading it could run program code, so it is refused.",
            "Get the LoRA as .safetensors, or convert it on a machine without anything valuable.",
            kind="lora",
        ) from error
    except InvalidTorchFile as error:
        raise UserError(f"{path.name} is damaged or not a PyTorch file: {error}.", "Download it again.", kind="lora") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path.name} is damaged or not a PyTorch file: {error}.", "Download it again.", kind="lora") from error
    if isinstance(data, dict) and isinstance(data.get("state_dict"), dict):
        data = data["state_dict"]
    if isinstance(data, (list, tuple)) and data and all(isinstance(item, torch.Tensor) for item in data):
        _check_size(path, data)
        return RawFile(path, listed=tuple(item.detach() for item in data))
    if isinstance(data, dict) and data and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in data.items()):
        _check_size(path, list(data.values()))
        return RawFile(path, {key: value.detach().contiguous() for key, value in data.items()})
    raise UserError(f"{path.name} does not hold named tensors.", "It is not a LoRA. Is it a training state?", kind="lora")


def _check_count(path: Path, count: int) -> None:
    if count > _MOST_TENSORS:
        raise UserError(f"{path.name} has {count:,} tensors. No LoRA has more than {_MOST_TENSORS:,}.", "Choose a LoRA file.", kind="lora")


def _check_size(path: Path, listed: Sequence[torch.Tensor]) -> None:
    """Raise UserError when copies of the tensors would be much larger than their file."""
    _check_count(path, len(listed))
    taken, size = sum(tensor.numel() * tensor.element_size() for tensor in listed), path.stat().st_size
    if taken > size + _SLACK:
        raise UserError(
            f"{path.name} is damaged or not a PyTorch file: its tensors would take {taken:,} bytes, but the file has {size:,}.",
            "Download it again.",
            kind="lora",
        )


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
