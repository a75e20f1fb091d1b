"""Checkpoints to change: diffusers folders, and copies of files and folders with other content."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from trainer.families import family_named, open_checkpoint


def save_as_folder(checkpoint: Path, folder: Path) -> Path:
    """Save an SD 1.x checkpoint as a diffusers folder."""
    family_named("sd1").pipeline(open_checkpoint(str(checkpoint)), dtype=torch.float32).save_pretrained(folder)
    return folder


def copy_folder(source: Path, target: Path) -> Path:
    """Copy a model folder, with hard links instead of copied files."""
    shutil.copytree(source, target, copy_function=lambda old, new: Path(new).hardlink_to(old))
    return target


def with_tensors(source: Path, target: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    """Copy a .safetensors file with additional or replaced tensors and other metadata."""
    save_file({**load_file(source), **tensors}, target, metadata=metadata)
    return target
