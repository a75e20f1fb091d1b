"""Key names, compared with the tables of real kohya files and with diffusers' modules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.lorafile.helpers import key_table, sd15_layers
from trainer.core.errors import UserError
from trainer.lorafile import FAMILY_LAYOUTS, UNetLayout, diffusers_to_ldm, kohya_text_encoder_key, kohya_unet_key, ldm_to_diffusers
from trainer.lorafile.naming.kohya_names import dotted


def test_sd15_names_match_real_kohya_file() -> None:
    real = {key.split(".")[0] for key in key_table("sd15") if key.startswith("lora_unet")}
    assert {kohya_unet_key("sd1", name) for name in sd15_layers()} == real
    assert len(real) == 192


@pytest.mark.parametrize("table", ["sd15", "sdxl"])
def test_keys_of_real_files_split_into_known_module_names(table: str) -> None:
    for key in key_table(table):
        prefix = next(p for p in ("lora_unet_", "lora_te1_", "lora_te2_", "lora_te_") if key.startswith(p))
        name = key[len(prefix) :].split(".")[0]
        split = dotted(name)
        assert split is not None and split.replace(".", "_") == name


def test_text_encoder_keys_restore_missing_prefix() -> None:
    real = {key.split(".")[0] for key in key_table("sd15") if key.startswith("lora_te_")}
    short = [f"encoder.layers.{i}.{layer}" for i in range(12) for layer in ("mlp.fc1", "mlp.fc2")]
    short += [f"text_model.encoder.layers.{i}.self_attn.{which}_proj" for i in range(12) for which in ("q", "k", "v", "out")]
    assert {kohya_text_encoder_key("sd1", "te1", name) for name in short} == real
    assert kohya_text_encoder_key("sdxl", "te2", short[0]) == "lora_te2_text_model_encoder_layers_0_mlp_fc1"


@pytest.mark.parametrize(
    ("family", "ldm", "diffusers"),
    [  # derived by hand from the constructors in both code bases
        ("sd1", "input_blocks.1.1.proj_in", "down_blocks.0.attentions.0.proj_in"),
        ("sd1", "input_blocks.8.1.transformer_blocks.0.attn1.to_q", "down_blocks.2.attentions.1.transformer_blocks.0.attn1.to_q"),
        ("sd1", "input_blocks.3.0.op", "down_blocks.0.downsamplers.0.conv"),
        ("sd1", "middle_block.1.proj_out", "mid_block.attentions.0.proj_out"),
        ("sd1", "middle_block.2.in_layers.2", "mid_block.resnets.1.conv1"),
        ("sd1", "output_blocks.2.1.conv", "up_blocks.0.upsamplers.0.conv"),
        ("sd1", "output_blocks.5.2.conv", "up_blocks.1.upsamplers.0.conv"),
        ("sd1", "output_blocks.11.1.proj_in", "up_blocks.3.attentions.2.proj_in"),
        ("sdxl", "input_blocks.4.1.transformer_blocks.1.ff.net.2", "down_blocks.1.attentions.0.transformer_blocks.1.ff.net.2"),
        ("sdxl", "output_blocks.0.1.transformer_blocks.9.attn2.to_v", "up_blocks.0.attentions.0.transformer_blocks.9.attn2.to_v"),
        ("sdxl", "output_blocks.2.2.conv", "up_blocks.0.upsamplers.0.conv"),
        ("sdxl", "output_blocks.8.0.skip_connection", "up_blocks.2.resnets.2.conv_shortcut"),
        ("sdxl", "label_emb.0.2", "add_embedding.linear_2"),
    ],
)
def test_ldm_names_map_both_ways(family: str, ldm: str, diffusers: str) -> None:
    assert ldm_to_diffusers(ldm, FAMILY_LAYOUTS[family].layout) == diffusers
    assert diffusers_to_ldm(diffusers, FAMILY_LAYOUTS[family].layout) == ldm


def test_sdxl_keys_use_ldm_names() -> None:
    key = kohya_unet_key("sdxl", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q")
    assert key == "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"


def test_unknown_family_and_module_are_refused() -> None:
    with pytest.raises(UserError, match="flux"):
        kohya_unet_key("flux", "down_blocks.0.attentions.0.proj_in")
    with pytest.raises(UserError, match="no module"):
        kohya_unet_key("sdxl", "down_blocks.3.attentions.0.proj_in")
    with pytest.raises(UserError, match="te2"):
        kohya_text_encoder_key("sd1", "te2", "encoder.layers.0.mlp.fc1")


@given(
    layers=st.integers(1, 4),
    attention=st.lists(st.booleans(), min_size=1, max_size=5),
    block=st.integers(0, 40),
    position=st.integers(0, 2),
    rest=st.sampled_from(["proj_in", "in_layers.2", "conv", "op", "transformer_blocks.0.attn1.to_q", "skip_connection", ""]),
    root=st.sampled_from(["input_blocks", "output_blocks"]),
)
def test_ldm_names_survive_mapping_and_back(layers: int, attention: list[bool], block: int, position: int, rest: str, root: str) -> None:
    layout = UNetLayout(layers, tuple(attention))
    name = f"{root}.{block}.{position}.{rest}" if rest else f"{root}.{block}.{position}"
    there = ldm_to_diffusers(name, layout)
    if there is not None and "samplers" not in there:
        assert diffusers_to_ldm(there, layout) == name


@given(st.text(max_size=60))
def test_any_text_splits_or_is_refused(text: str) -> None:
    split = dotted(text)
    assert split is None or split.replace(".", "_") == text


@pytest.mark.parametrize(("layers", "attention"), [(1, (True, True)), (2, (False, True, True)), (3, (True, False))])
def test_names_of_unusual_unets_match_diffusers(layers: int, attention: tuple[bool, ...]) -> None:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        block_out_channels=(32,) * len(attention),
        layers_per_block=layers,
        down_block_types=["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in attention],
        up_block_types=["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attention)],
        cross_attention_dim=32,
        norm_num_groups=8,
    )
    layout = UNetLayout(layers, attention)
    seen = set()
    for name, module in unet.named_modules():
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        ldm = diffusers_to_ldm(name, layout)
        assert ldm is not None, name
        assert ldm not in seen
        assert ldm_to_diffusers(ldm, layout) == name
        seen.add(ldm)
