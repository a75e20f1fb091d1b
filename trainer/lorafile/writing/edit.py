"""Edit a LoRA's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...core.errors import UserError
from ...core.files.image_file import load_image
from .. import container
from ..thumbnail import from_data_url, to_data_url

# Names for users, and the keys that programs read.
FIELDS = {
    "title": "modelspec.title",
    "author": "modelspec.author",
    "description": "modelspec.description",
    "trigger": "modelspec.trigger_phrase",
    "tags": "modelspec.tags",
    "licence": "modelspec.license",
    "license": "modelspec.license",
    "usage_hint": "modelspec.usage_hint",
    "thumbnail": "modelspec.thumbnail",
}


def edited(metadata: Mapping[str, str], changes: Mapping[str, str]) -> dict[str, str]:
    """``metadata`` with ``changes``. Keys are those of ``FIELDS`` or any full key; an empty value removes the key.

    ``thumbnail`` is an image file, which is embedded as a small JPEG, or a data URL. Raises UserError for an unreadable image.
    """
    result = dict(metadata)
    for name, value in changes.items():
        key = FIELDS.get(name, name)
        if not key.strip():
            raise UserError("A metadata key is empty.", "Write key=value.", kind="lora")
        if not value:
            result.pop(key, None)
            continue
        result[key] = _thumbnail(value) if key == FIELDS["thumbnail"] else value
    if any(FIELDS.get(name, name).startswith("modelspec.") for name in changes):
        result.setdefault("modelspec.sai_model_spec", "1.0.1")  # programs ignore the other keys without the version
    return result


def edit_metadata(path: Path, target: Path, changes: Mapping[str, str]) -> dict[str, str]:
    """Write ``path`` with edited metadata to ``target`` (may be the same path). Tensors stay unchanged. Returns the new metadata."""
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise UserError(f"{path.name} has no metadata.", "Export it as .safetensors first.", kind="lora")
    metadata = edited(container.read_safetensors_header(path).metadata, changes)
    container.rewrite_metadata(path, Path(target), metadata)
    return metadata


def _thumbnail(value: str) -> str:
    if value.startswith("data:"):
        if from_data_url(value) is None:
            raise UserError("The thumbnail's data URL holds no image.", "Give an image file instead.", kind="lora")
        return value
    try:
        return to_data_url(load_image(value))
    except FileNotFoundError as error:
        raise UserError(f"The image {value} does not exist.", "Check the path of the thumbnail.", kind="lora") from error
    except (OSError, ValueError) as error:
        raise UserError(f"The image {value} cannot be read: {error}.", "Choose a PNG, JPEG or WebP image.", kind="lora") from error
