"""The change of a weight equals the published formula."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from trainer.cli import main
from trainer.lorafile import (
    read_lora,
)  # fmt: skip


def test_change_of_tucker_lokr_is_the_kronecker_product(tmp_path: Path) -> None:
    """The second factor of a convolution as LyCORIS stores it: a core (rank, rank, 3, 3) between two matrices."""
    draw = torch.Generator().manual_seed(0)
    key = "lora_unet_down_blocks_0_resnets_0_conv1"
    first, core = torch.randn(4, 2, generator=draw), torch.randn(3, 3, 3, 3, generator=draw)
    outputs, inputs = torch.randn(3, 80, generator=draw), torch.randn(3, 160, generator=draw)
    tensors = {f"{key}.lokr_w1": first, f"{key}.lokr_t2": core, f"{key}.lokr_w2_a": outputs, f"{key}.lokr_w2_b": inputs}
    save_file({**tensors, f"{key}.alpha": torch.tensor(6.0)}, tmp_path / "x.safetensors", {"ss_base_model_version": "sd_v1"})
    (module,) = read_lora(tmp_path / "x.safetensors").modules
    second = (outputs.T @ core.permute(2, 3, 0, 1) @ inputs).permute(2, 3, 0, 1)
    rows = [torch.cat([first[row, column] * second for column in range(2)], 1) for row in range(4)]
    torch.testing.assert_close(module.delta(), 2 * torch.cat(rows), rtol=1e-4, atol=1e-4)
    assert main(["info", str(tmp_path / "x.safetensors")]) == 0
