"""LyCORIS files give the same output as the LyCORIS library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.lorafile.reading.files import written
from trainer.lorafile import scan_lora
from trainer.lorafile.algorithms.dora import apply_dora

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"


def lycoris_file(
    path: Path, algorithm: str, convolution: bool, tucker: bool, dora: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, str]:
    """Write a file with one layer made by LyCORIS. Returns the original weight, an input, LyCORIS' output for it, and the layer's name.

    The output is compared and not ``get_diff_weight``, which applies the scale of LoHa and LoKr twice in LyCORIS 4.1.3.
    """
    pytest.importorskip("lycoris")
    from lycoris.modules.locon import LoConModule
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule

    torch.manual_seed(0)
    name = "down_blocks.0.resnets.0.conv1" if convolution else f"{BLOCK}.attn2.to_k"
    layer: torch.nn.Conv2d | torch.nn.Linear
    layer = torch.nn.Conv2d(16, 24, 3, bias=False) if convolution else torch.nn.Linear(768, 320, bias=False)
    kinds: dict[str, Any] = {"locon": LoConModule, "loha": LohaModule, "lokr": LokrModule, "lokr-full": LokrModule}
    options: dict[str, object] = (
        {"factor": 4} if algorithm == "lokr" else {"factor": 4, "full_matrix": True} if algorithm == "lokr-full" else {}
    )
    module = kinds[algorithm](
        "lora_unet_" + name.replace(".", "_"), layer, 1.0, lora_dim=4, alpha=2, use_tucker=tucker, weight_decompose=dora, **options
    )
    for parameter in module.parameters():
        if parameter.requires_grad and parameter.ndim > 1 and not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.2)
    if dora:
        module.dora_scale.data *= 1.2
    module.eval()
    with torch.no_grad():
        image = torch.randn(2, 16, 6, 6) if convolution else torch.randn(3, 768)
        output = module(image)
        state = {f"{module.lora_name}.{key}": value.detach().clone() for key, value in module.custom_state_dict().items()}
    written(path, state)
    return layer.weight.detach(), image, output, name


@pytest.mark.parametrize("algorithm", ["locon", "loha", "lokr", "lokr-full"])
@pytest.mark.parametrize(
    ("convolution", "tucker", "dora"),
    [(False, False, False), (True, False, False), (True, True, False), (False, False, True), (True, False, True)],
)
def test_lycoris_files_give_same_output_as_lycoris(tmp_path: Path, algorithm: str, convolution: bool, tucker: bool, dora: bool) -> None:
    path = tmp_path / "x.safetensors"
    before, image, output, name = lycoris_file(path, algorithm, convolution, tucker, dora)
    weights = scan_lora(path)
    assert [module.name for module in weights] == [name]
    module = weights.modules[0]
    expected = {"locon": "lora", "loha": "loha"}.get(algorithm, "lokr")
    assert module.algorithm == expected and module.is_dora == dora
    delta = module.delta().reshape(before.shape)
    after = apply_dora(before, delta, module.tensors["dora_scale"]) if dora else before + delta
    ours = torch.nn.functional.conv2d(image, after) if convolution else torch.nn.functional.linear(image, after)
    assert not torch.allclose(ours, torch.nn.functional.conv2d(image, before) if convolution else image @ before.T, atol=1e-2)
    assert torch.allclose(ours, output, atol=1e-4, rtol=1e-4)
