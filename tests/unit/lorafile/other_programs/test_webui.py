"""A1111 and Forge cannot be installed for the tests, so their rules for keys and metadata are reproduced here.

They follow stable-diffusion-webui 1.10 (extensions-builtin/Lora/networks.py, network.py) and Forge (the same names; its loader is ComfyUI's
of 2024). The layers come from the architecture (random_checkpoints/layout.py).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from safetensors import safe_open

from random_checkpoints.layout import SIZES, tensors
from tests.unit.lorafile.helpers import key_table
from tests.unit.lorafile.other_programs.compatibility import record
from tests.unit.lorafile.other_programs.samples import sample, sd15_sizes, sdxl_sizes
from trainer.lorafile import TrainingFacts, build_metadata, convert, inspect_lora, save_lora, write_lora

_SUFFIXES = {"lora_up.weight", "lora_down.weight", "alpha"}


def webui_name(key: str) -> str:
    """The name by which A1111 looks up the layer of a kohya key of SD 1.x: LDM names with underscores, without a prefix."""
    if match := re.fullmatch(r"lora_unet_down_blocks_(\d+)_attentions_(\d+)_(.+)", key):
        return f"model_diffusion_model_input_blocks_{1 + int(match[1]) * 3 + int(match[2])}_1_{match[3]}"
    if match := re.fullmatch(r"lora_unet_mid_block_attentions_(\d+)_(.+)", key):
        return f"model_diffusion_model_middle_block_1_{match[2]}"
    if match := re.fullmatch(r"lora_unet_up_blocks_(\d+)_attentions_(\d+)_(.+)", key):
        return f"model_diffusion_model_output_blocks_{int(match[1]) * 3 + int(match[2])}_1_{match[3]}"
    if match := re.fullmatch(r"lora_te_text_model_encoder_layers_(\d+)_(.+)", key):
        return f"cond_stage_model_transformer_text_model_encoder_layers_{match[1]}_{match[2]}"
    return key


def test_every_key_names_a_layer_of_the_checkpoint(tmp_path: Path) -> None:
    layers = {tensor.name.removesuffix(".weight").replace(".", "_"): tensor.shape for tensor in tensors(SIZES["full"])}
    write_lora(tmp_path / "x.safetensors", convert(sample(sd15_sizes(), "sd1"), "kohya"))
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        shapes = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    assert {key.split(".", 1)[1] for key in shapes} == _SUFFIXES
    for key, shape in shapes.items():
        name, _, suffix = key.partition(".")
        layer = layers[webui_name(name)]
        assert suffix != "lora_up.weight" or shape[0] == layer[0]
        assert suffix != "lora_down.weight" or shape[1] == layer[1]
    assert shapes.keys() == key_table("sd15").keys()
    found = f"all {len(shapes)} keys land on a layer of the right size; the same keys as a real kohya file"
    for tool, version in (("A1111", "1.10 (rules)"), ("Forge", "2024 (rules)")):
        record(tool, version, "SD 1.5, kohya format, lora", found, "its naming rules applied to the layers of the original checkpoint")


def test_sdxl_keys_are_the_original_names(tmp_path: Path) -> None:
    """A1111 looks up SDXL keys unchanged (after ``lora_unet_`` becomes ``diffusion_model_``), so they must be LDM names."""
    tensors_ = convert(sample(sdxl_sizes(), "sdxl"), "kohya").tensors
    names = {key.split(".")[0] for key in tensors_}
    assert len(names) == 722 + 72 + 192
    pattern = re.compile(
        r"lora_unet_(input_blocks_[4578]_1|middle_block_1|output_blocks_[0-5]_1)_(proj_in|proj_out|transformer_blocks_\d_.+)"
        r"|lora_te[12]_text_model_encoder_layers_\d+_(mlp_fc[12]|self_attn_(q|k|v|out)_proj)"
    )
    assert [name for name in names if not pattern.fullmatch(name)] == []
    # a real kohya file has the same number of layers, with diffusers' names
    real = {key.split(".")[0] for key in key_table("sdxl")}
    assert len({name for name in real if "lora_unet" in name}) == len({name for name in names if "lora_unet" in name})
    for tool, version in (("A1111", "1.10 (rules)"), ("Forge", "2024 (rules)")):
        record(tool, version, "SDXL, kohya format, lora", f"all {len(names)} layers have their original names", "its naming rules")


def test_metadata_has_trigger_words_and_base_model(tmp_path: Path) -> None:
    """The metadata that cards and the filter read."""
    for family, version, architecture in (
        ("sd1", "SD1", "stable-diffusion-v1/lora"),
        ("sd2", "SD2", "stable-diffusion-v2-512/lora"),
        ("sdxl", "SDXL", "stable-diffusion-xl-v1-base/lora"),
    ):
        facts = TrainingFacts(
            "my_style", family, 4, 4.0, base_name="anime.safetensors", trigger="ohwx", class_description="girl",
            tag_frequency={"ohwx_girl": {"ohwx": 9, "smile": 2}}, image_count=9, started_at=1.0, finished_at=2.0,
        )  # fmt: skip
        metadata = build_metadata(facts)
        if family == "sd1":
            save_lora(
                tmp_path / "x.safetensors", {k: t for k, t in convert(sample(sd15_sizes(), "sd1"), "kohya").tensors.items()}, metadata
            )
            metadata = dict(inspect_lora(tmp_path / "x.safetensors").metadata)
            assert re.fullmatch(r"[0-9a-f]{64}", metadata["sshs_model_hash"])
        # A1111: NetworkOnDisk.detect_version
        detected = "SDXL" if metadata["ss_base_model_version"].startswith("sdxl_") else "SD2" if metadata["ss_v2"] == "True" else "SD1"
        assert detected == version
        assert metadata["ss_output_name"] == "my_style"  # the alias in <lora:my_style:1>
        counted: dict[str, int] = {}
        for tags in json.loads(metadata["ss_tag_frequency"]).values():
            counted = {tag: counted.get(tag, 0) + count for tag, count in tags.items()}
        assert max(counted, key=lambda tag: counted[tag]) == "ohwx"  # the first of the card's suggested tags
        assert metadata["modelspec.architecture"] == architecture
        assert metadata["ss_sd_model_name"] == "anime.safetensors"
    found = "alias, base model, hash and trigger word where the card looks for them"
    for tool, version in (("A1111", "1.10 (rules)"), ("Forge", "2024 (rules)")):
        record(tool, version, "Metadata", found, "its metadata rules applied to a written file")
