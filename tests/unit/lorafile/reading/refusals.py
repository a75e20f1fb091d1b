"""Reading a file that must be refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainer.core.errors import UserError
from trainer.lorafile import inspect_lora, read_lora


def refused(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> str:
    """The reason for refusing a file with these tensors, which ``info`` reports as well."""
    path = tmp_path / "x.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    with pytest.raises(UserError) as caught:
        read_lora(path)
    info = inspect_lora(path)
    assert not info.usable and info.problems
    return caught.value.message
