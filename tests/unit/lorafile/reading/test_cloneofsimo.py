"""Lists of cloneofsimo/lora get their layer names from the order in which that program writes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.unit.lorafile.reading.files import listed, written
from trainer.core.errors import UserError
from trainer.lorafile import convert, read_lora


@pytest.mark.parametrize("geglu", ["middle", "last", "none"])
def test_cloneofsimo_list_gets_layer_names(tmp_path: Path, geglu: str) -> None:
    names, tensors = listed(geglu)
    torch.save(tensors, tmp_path / "lora.pt")
    weights = read_lora(tmp_path / "lora.pt")
    assert weights.format == "cloneofsimo" and weights.family == "sd1"
    assert {module.name: float(module.tensors["lora_up.weight"][0, 0]) for module in weights} == {n: i + 1.0 for i, n in enumerate(names)}
    assert all(module.scale == 1.0 for module in weights)


def test_cloneofsimo_text_encoder_list(tmp_path: Path) -> None:
    torch.save(
        [torch.full(shape, float(i // 2)) + 1 for i in range(2 * 48) for shape in [(768, 4) if i % 2 == 0 else (4, 768)]], tmp_path / "t.pt"
    )
    weights = read_lora(tmp_path / "t.pt")
    found = {module.name: float(module.tensors["lora_up.weight"][0, 0]) for module in weights}
    # transformers' CLIPAttention lists k, v, q, out
    assert found["text_model.encoder.layers.0.self_attn.k_proj"] == 1
    assert found["text_model.encoder.layers.0.self_attn.q_proj"] == 3
    assert found["text_model.encoder.layers.11.self_attn.out_proj"] == 48


def test_cloneofsimo_safetensors_with_an_embedding(tmp_path: Path) -> None:
    names, tensors = listed("middle")
    table = {f"unet:{i // 2}:{'down' if i % 2 else 'up'}": tensor for i, tensor in enumerate(tensors)}
    metadata = {"unet": '["CrossAttention", "Attention", "GEGLU"]', "<s1>": "<embed>", "author": "someone"}
    metadata |= {f"unet:{i}:rank": "2" for i in range(len(names))}
    weights = read_lora(written(tmp_path / "x.safetensors", {**table, "<s1>": torch.ones(768)}, metadata))
    assert [module.name for module in weights] == names
    assert list(weights.extra) == ["<s1>"]
    assert weights.metadata == {"author": "someone"}


def extended() -> tuple[list[str], list[torch.Tensor]]:
    """Names and tensors in the order of cloneofsimo's library: the layers below its target classes in diffusers' own UNet."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        model = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)  # SD 1.5's otherwise
    names: list[str] = []
    for name, module in model.named_modules():
        if type(module).__name__ in ("ResnetBlock2D", "CrossAttention", "Attention", "GEGLU"):
            inner = module.named_modules(prefix=name)
            names += [child for child, layer in inner if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d))]
    tensors: list[torch.Tensor] = []
    for number, name in enumerate(names):
        out, into, *kernel = model.get_submodule(name).weight.shape
        tensors += [torch.full((out, 2, *(1 for _ in kernel)), number + 1.0), torch.ones(2, into, *kernel)]
    return names, tensors


def test_cloneofsimo_extended_list_gets_layer_names(tmp_path: Path) -> None:
    names, tensors = extended()
    assert len(names) == 16 * 9 + 22 * 3 + 14  # attention blocks, ResNet blocks, ResNet blocks with a shortcut
    torch.save(tensors, tmp_path / "lora.pt")
    weights = read_lora(tmp_path / "lora.pt")
    assert (weights.format, weights.family, weights.algorithm) == ("cloneofsimo", "sd1", "locon")
    assert [module.name for module in weights] == names
    assert [float(module.tensors["lora_up.weight"].flatten()[0]) for module in weights] == [i + 1.0 for i in range(len(names))]
    kohya = convert(weights, "kohya").tensors
    assert kohya["lora_unet_up_blocks_0_resnets_0_conv_shortcut.lora_down.weight"].shape == (2, 2560, 1, 1)
    assert kohya["lora_unet_down_blocks_1_resnets_0_conv1.lora_down.weight"].shape == (2, 320, 3, 3)

    table = {f"unet:{i // 2}:{'down' if i % 2 else 'up'}": tensor for i, tensor in enumerate(tensors)}
    path = written(tmp_path / "x.safetensors", table, {"unet": '["ResnetBlock2D", "CrossAttention", "Attention", "GEGLU"]'})
    assert [module.name for module in read_lora(path)] == names


def test_cloneofsimo_extended_list_in_another_order_is_refused(tmp_path: Path) -> None:
    names, tensors = extended()
    shortcut = 2 * names.index("down_blocks.1.resnets.0.conv_shortcut")
    moved = names.index("up_blocks.1.resnets.0.conv1") * 2
    for wrong in (
        tensors[:-2],  # the last layer is missing
        [*tensors, *tensors[-2:]],
        tensors[:shortcut] + tensors[shortcut + 2 :],
        tensors[:moved] + tensors[moved + 2 : moved + 4] + tensors[moved : moved + 2] + tensors[moved + 4 :],
    ):
        torch.save(wrong, tmp_path / "wrong.pt")
        with pytest.raises(UserError, match="without layer names"):
            read_lora(tmp_path / "wrong.pt")


def test_cloneofsimo_list_of_another_model_is_refused(tmp_path: Path) -> None:
    _, tensors = listed("middle")
    torch.save(tensors[:-2], tmp_path / "short.pt")
    with pytest.raises(UserError, match="without layer names"):
        read_lora(tmp_path / "short.pt")
    tensors[6], tensors[0] = tensors[16], tensors[8]
    torch.save(tensors, tmp_path / "shuffled.pt")
    with pytest.raises(UserError, match="without layer names"):
        read_lora(tmp_path / "shuffled.pt")
