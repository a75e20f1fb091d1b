"""Anima's module names, compared with the models and converters of diffusers and transformers."""

from __future__ import annotations

import pytest

from trainer.lorafile.naming.anima_names import anima_module, anima_to_diffusers, block_of, diffusers_to_anima, in_block

pytest.importorskip("diffusers.models.condition_embedders.condition_embedder_anima", reason="diffusers knows Anima from 0.39 on")

from ..anima_models import anima_parts, linear_layers


def test_every_layer_of_the_denoiser_has_the_original_name_that_diffusers_converts() -> None:
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_anima_lora_to_diffusers

    names = linear_layers(anima_parts()["unet"])
    originals = {name: diffusers_to_anima(name) for name in names}
    assert None not in originals.values()
    keys = {f"diffusion_model.{original}.lora_A.weight": None for original in originals.values()}
    assert set(_convert_non_diffusers_anima_lora_to_diffusers(keys)) == {f"transformer.{name}.lora_A.weight" for name in names}
    for name, original in originals.items():
        assert original and anima_to_diffusers(original) == name


@pytest.mark.parametrize("component", ["unet", "adapter", "te1"])
def test_names_with_underscores_stand_for_one_layer(component: str) -> None:
    names = linear_layers(anima_parts()[component])
    assert {anima_module(component, name.replace(".", "_")) for name in names} == set(names)
    assert {anima_module(component, name) for name in names} == set(names)


def test_original_names_with_underscores_stand_for_layers_of_the_denoiser() -> None:
    # names in files of kohya's sd-scripts
    assert anima_module("unet", "blocks_27_self_attn_output_proj") == "transformer_blocks.27.attn1.to_out.0"
    assert anima_module("unet", "blocks_0_adaln_modulation_cross_attn_2") == "transformer_blocks.0.norm2.linear_2"
    assert anima_module("unet", "final_layer_adaln_modulation_1") == "norm_out.linear_1"


@pytest.mark.parametrize(
    ("component", "name"),
    [
        ("unet", "blocks.0.self_attn.q"),  # Wan
        ("unet", "blocks.0.self_attn.o_proj"),
        ("unet", "transformer_blocks.0.attn.to_q"),  # FLUX
        ("unet", "blocks.00.self_attn.q_proj"),
        ("unet", "layers.0.self_attn.q_proj"),
        ("unet", "blocks.0_self_attn.q_proj"),
        ("adapter", "blocks.0.self_attn.output_proj"),
        ("te1", "text_model.encoder.layers.0.self_attn.q_proj"),
        ("te2", "layers.0.self_attn.q_proj"),
    ],
)
def test_modules_that_anima_lacks_have_no_name(component: str, name: str) -> None:
    assert anima_module(component, name) is None


def test_modules_move_to_another_block() -> None:
    assert block_of("transformer_blocks.14.ff.net.0.proj") == 14
    assert in_block("transformer_blocks.14.ff.net.0.proj", 20) == "transformer_blocks.20.ff.net.0.proj"
    assert block_of("norm_out.linear_1") is None
