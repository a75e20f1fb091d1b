"""Write a LoRA file with the hashes by which model browsers identify it, and check it after writing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from ...core.errors import UserError
from ...core.files.writing import atomic_path, partial_path
from ...core.messages import ExportOption, Message
from .. import container
from ..reading.read_lora import scan_lora

_CHUNK = 1 << 20


def save_lora(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write ``tensors`` with kohya's key names, ``metadata`` and the ``sshs_*`` hashes to ``path``, atomically, and check the result.

    Equal input gives equal bytes. Raises UserError and leaves ``path`` unchanged when the file would be unusable: see ``verify_lora``.
    """
    path = Path(path)
    if not tensors:
        raise UserError(f"{path.name} was not written, because there are no weights to save.", "", kind="lora")
    with atomic_path(path) as temporary:
        write_tensors(temporary, tensors, metadata)
        verify_lora(temporary, name=path.name)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write any tensors with ``metadata``, ``sshs_*`` and ``modelspec.hash_sha256``, without a check and not atomically."""
    ready = {key: tensor.detach().to("cpu").contiguous() for key, tensor in sorted(tensors.items())}
    training = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    with partial_path(path) as unhashed:
        save_file(ready, unhashed, metadata=training)
        model_hash, legacy_hash = file_hashes(unhashed)
        # hashes in ``metadata`` may belong to other tensors, so they are replaced
        full = {**metadata, "sshs_model_hash": model_hash, "sshs_legacy_hash": legacy_hash}
        if any(key.startswith("modelspec.") for key in metadata):
            full["modelspec.hash_sha256"] = f"0x{model_hash}"
        container.copy_with_metadata(unhashed, path, full)


def file_hashes(path: Path) -> tuple[str, str]:
    """kohya's two hashes of a safetensors file with only ``ss_*`` metadata: SHA-256 of the tensor data, and ``legacy_hash``."""
    start = container.read_safetensors_header(path).data_start
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest(), legacy_hash(path)


def matches_own_hash(path: Path) -> bool:
    """Whether the tensor data matches ``sshs_model_hash``, or the metadata has no such hash. Raises UserError for a damaged header."""
    stated = container.read_safetensors_header(path).metadata.get("sshs_model_hash")
    return stated is None or stated == file_hashes(path)[0]


def legacy_hash(path: Path) -> str:
    """A1111's short hash of a model file: the first eight digits of the SHA-256 of 64 KiB at 1 MiB."""
    with path.open("rb") as file:
        file.seek(0x100000)
        return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]


def verify_lora(path: Path, *, name: str = "") -> None:
    """Read a kohya-format file and raise UserError unless every module has down, up and alpha tensors that fit each other, are finite and
    not all zero."""
    path = Path(path)
    weights = scan_lora(path)
    label = name or path.name
    if weights.problems:
        raise UserError(f"{label} is not a usable LoRA: {'; '.join(weights.problems)}.", _hint(weights.problems), kind="lora")
    if weights.format != "kohya":
        raise UserError(
            f"{label} has {weights.format} key names instead of kohya's.",
            Message("Export it with ", ExportOption("format", "kohya"), "."),
            kind="lora",
        )
    lacking = [module.name for module in weights if module.algorithm == "lora" and module.alpha is None]
    if lacking:
        raise UserError(f"{label}: {len(lacking)} layers have no alpha, for example {lacking[0]}.", "Export it again.", kind="lora")


def _hint(problems: tuple[str, ...]) -> str:
    text = " ".join(problems)
    if "finite" in text:
        return "The training diverged. Lower the learning rate, or train in bf16 or fp32 instead of fp16."
    if "zero" in text:
        return "Nothing was learned. Raise the learning rate or train for more steps."
    return "This is a bug in AnimeLoRA. Please report it with the training log."
