"""The dataset that a Dataset Prep node will output, as far as it is known before the node runs: what it, or its twin, prepared last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ....trainer import dataset as datasets
from ....trainer.core.errors import UserError
from ....trainer.dataset.layout import HEADER
from ....trainer.dataset.manifest.open_dataset import read_manifest_header
from ..files.folders import datasets_dir
from ..inputs.socket_types import DatasetHandle

_SAME = ("trigger_word", "class_description", "resolution", "repeats")  # widgets that the manifest of a prepared dataset states
_IN_MANIFEST = {"trigger_word": "trigger", "class_description": "class_description", "resolution": "resolution", "repeats": "repeats"}
_PREPARED: dict[str, tuple[dict[str, Any], DatasetHandle]] = {}  # by node id; of this process only


def record_prepared(node_id: str | None, widgets: Mapping[str, Any], handle: DatasetHandle) -> None:
    """Record what the node ``node_id`` prepared with the values ``widgets``."""
    if node_id is not None:
        _PREPARED[node_id] = (dict(widgets), handle)


def find_prepared(node_id: str, inputs: Mapping[str, Any]) -> DatasetHandle | None:
    """The dataset that the node prepared last with these inputs or, after a restart, the newest one on disk that its widgets fit.

    None if there is none. The handle has no hash: the dataset may have been edited since, which the node will notice when it runs.
    """
    widgets = {name: value for name, value in inputs.items() if not isinstance(value, list)}
    before, handle = _PREPARED.get(node_id, ({}, None))
    if handle is not None and all(before.get(name) == value for name, value in widgets.items()) and (Path(handle.path) / HEADER).is_file():
        return replace(handle, hash="")
    return _on_disk(widgets) if all(name in widgets for name in _SAME) else None


def _on_disk(widgets: Mapping[str, Any]) -> DatasetHandle | None:
    try:
        settings = datasets.parse_settings({_IN_MANIFEST[name]: widgets[name] for name in _SAME})
    except UserError:
        return None
    first = datasets.dataset_folder(datasets_dir(), settings)
    wanted = settings.model_dump(include=set(_IN_MANIFEST.values()))
    fitting: list[tuple[float, Path]] = []
    for folder in (first, *first.parent.glob(f"{first.name}-*")):
        try:
            made_with = read_manifest_header(folder).get("settings", {})
            if all(made_with.get(name) == value for name, value in wanted.items()):
                fitting.append(((folder / HEADER).stat().st_mtime, folder))
        except (UserError, OSError, AttributeError):
            continue
    if not fitting:
        return None
    return DatasetHandle(str(max(fitting)[1]), "", settings.trigger, settings.class_description, 0)
