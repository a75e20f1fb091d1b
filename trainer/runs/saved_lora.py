"""LoRA files that a run saves beside its states. A LoRA with a flipped bit still opens, so each has a record with its checksum."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import UserError
from ..core.files.reading import sha256_file
from ..core.files.sealed_json import read_sealed, write_sealed

_RECORD = "lora.json"


def write_record(lora: Path) -> None:
    """Store the checksum of a LoRA file that was just written."""
    write_sealed(lora.with_name(_RECORD), {"file": lora.name, "sha256": sha256_file(lora)})


def copy_record(lora: Path, copy: Path) -> None:
    """Store the checksum of ``copy``, which has the bytes of ``lora``. Without a record of that one there is none."""
    if has_record(lora):
        write_sealed(copy.with_name(_RECORD), {"file": copy.name, "sha256": read_sealed(lora.with_name(_RECORD))["sha256"]})


def has_record(lora: Path) -> bool:
    """Whether the checksum of a saved LoRA was recorded. An earlier version and a process that was killed before it leave none."""
    return lora.with_name(_RECORD).exists()


def is_undamaged(lora: Path) -> bool:
    """Whether a saved LoRA matches its record; without a record (earlier versions), whether its weights match the hash in its metadata."""
    from ..lorafile import matches_own_hash

    try:
        if not has_record(lora):
            return matches_own_hash(lora)
        return bool(read_sealed(lora.with_name(_RECORD)) == {"file": lora.name, "sha256": sha256_file(lora)})
    except (OSError, ValueError, UserError):
        return False


def require_undamaged_lora(lora: Path) -> None:
    """Raise UserError if a saved LoRA is damaged."""
    if not is_undamaged(lora):
        raise UserError(
            f"The saved LoRA {lora} is damaged: it does not match its checksum.",
            "Choose another saved step. To save this one again, delete the run folder and train again.",
            kind="lora",
        )
