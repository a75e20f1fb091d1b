"""LoRA files for other models, with wrong shapes or with unusable numbers are refused with the reason."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.unit.lorafile.helpers import lora_tensors, small_layers
from tests.unit.lorafile.reading.refusals import refused
from trainer.core.errors import UserError
from trainer.lorafile import card, inspect_lora, mismatch, read_lora, scan_lora
from trainer.lorafile.changing.rank import reduce_to_rank

PAIR = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (["lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_single_blocks_0_linear1"], "FLUX"),
        (["lora_unet_joint_blocks_0_x_block_attn_qkv"], "Stable Diffusion 3"),
        (["lora_prior_unet_down_blocks_0_1_channelwise_0"], "Cascade"),
        (["diffusion_model.blocks.0.cross_attn.k"], "video"),
    ],
)
def test_lora_for_another_kind_of_model_is_named(tmp_path: Path, keys: list[str], named: str) -> None:
    tensors = {f"{key}.{part}": torch.ones(4, 4) for key in keys for part in ("lora_up.weight", "lora_down.weight")}
    assert named in refused(tmp_path, tensors)


def test_file_without_lora_is_described(tmp_path: Path) -> None:
    assert "conv.weight" in refused(tmp_path, {"conv.weight": torch.ones(2)})
    assert "checkpoint" in refused(tmp_path, {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(2)})
    assert "embedding" in refused(tmp_path, {"emb_params": torch.ones(2, 768)})


def test_malformed_keys_are_listed_and_the_rest_is_used(tmp_path: Path) -> None:
    tensors = lora_tensors(small_layers())
    tensors["lora_unet_down_blocks_0_atentions_0_proj_in.lora_up.weight"] = torch.ones(2, 2)
    tensors["something"] = torch.ones(1)
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    info = inspect_lora(path)
    assert info.usable
    assert info.unknown_keys == ("lora_unet_down_blocks_0_atentions_0_proj_in.lora_up.weight", "something")
    assert "2 keys are malformed" in info.problems[0] and "atentions" in info.problems[0]


def test_unknown_algorithm_is_named(tmp_path: Path) -> None:
    tensors = {f"{PAIR}.lora_up.weight": torch.ones(320, 2), f"{PAIR}.hada_w1_a": torch.ones(2, 2)}
    message = refused(tmp_path, tensors)
    assert "unknown algorithm" in message and "hada_w1_a" in message
    known = {f"{PAIR}.oft_blocks": torch.ones(4, 8, 8), f"{PAIR}.alpha": torch.tensor(1.0)}
    save_file(known, tmp_path / "oft.safetensors")
    info = inspect_lora(tmp_path / "oft.safetensors")
    assert info.usable and info.algorithm == "oft" and "oft" in info.problems[0]


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    for value in (float("nan"), float("inf")):
        tensors = lora_tensors(small_layers())
        tensors[f"{PAIR}.lora_down.weight"][1, 3] = value
        message = refused(tmp_path, tensors)
        assert "not finite" in message and "attn2.to_k" in message
    tensors = lora_tensors(small_layers())
    tensors[f"{PAIR}.alpha"] = torch.tensor(float("nan"))
    assert "alpha" in refused(tmp_path, tensors)
    tensors[f"{PAIR}.alpha"] = torch.ones(3)
    assert "alpha" in refused(tmp_path, tensors)


def test_wrong_shapes_are_refused(tmp_path: Path) -> None:
    tensors = lora_tensors(small_layers())
    tensors[f"{PAIR}.lora_up.weight"] = torch.ones(320, 9)
    assert "do not fit each other" in refused(tmp_path, tensors)
    tensors = lora_tensors(small_layers())
    tensors[f"{PAIR.replace('attn2_to_k', 'attn1_to_q')}.lora_down.weight"] = torch.ones(4, 768)
    message = refused(tmp_path, tensors)
    assert "320 x 768 and should be 320 x 320" in message
    tensors = lora_tensors(small_layers())
    tensors[f"{PAIR}.lora_up.weight"] = torch.ones(320)
    assert "are not matrices" in refused(tmp_path, tensors)


@pytest.mark.parametrize("shape", [(7, 1), (1, 320), (321, 1), (), (0, 1)])
def test_misshapen_dora_magnitudes_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tensors = lora_tensors(small_layers())
    tensors[f"{PAIR}.dora_scale"] = torch.ones(shape)
    message = refused(tmp_path, tensors)
    assert "do not fit each other" in message and f"dora_scale {list(shape)}" in message and "[320, 768]" in message


@pytest.mark.parametrize("shape", [(320, 1), (1, 768), (320,)])
def test_dora_magnitudes_of_outputs_or_inputs_are_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tensors = lora_tensors(small_layers())
    tensors[f"{PAIR}.dora_scale"] = torch.ones(shape)
    save_file(tensors, tmp_path / "x.safetensors")
    assert read_lora(tmp_path / "x.safetensors").problems == ()


def test_family_is_detected_by_text_width(tmp_path: Path) -> None:
    for width, family in ((768, "sd1"), (1024, "sd2"), (2048, "sdxl")):
        path = tmp_path / f"{family}.safetensors"
        outputs = 640 if family == "sdxl" else 320
        key = PAIR.replace("down_blocks_0", "down_blocks_1") if family == "sdxl" else PAIR
        save_file({f"{key}.lora_up.weight": torch.ones(outputs, 2), f"{key}.lora_down.weight": torch.ones(2, width)}, path)
        info = inspect_lora(path)
        assert (info.family, info.context_width) == (family, width)
        reason = mismatch(info.family, "sd1", info.context_width, 768)
        assert (reason == "") == (family == "sd1")
        if family == "sd2":
            assert "Stable Diffusion 2.x" in reason and "1024" in reason and "768" in reason


def test_all_zero_weights_are_refused(tmp_path: Path) -> None:
    tensors = {key: torch.zeros_like(t) if "lora_up" in key else t for key, t in lora_tensors(small_layers()).items()}
    assert "zero" in refused(tmp_path, tensors)


def test_factors_with_oversized_product_are_refused(tmp_path: Path) -> None:
    tensors = {f"{PAIR}.hada_w{n}_{side}": torch.ones((1 << 20, 1) if side == "a" else (1, 1 << 20)) for n in "12" for side in "ab"}
    save_file(tensors, tmp_path / "x.safetensors", {"ss_base_model_version": "sd_v1"})
    (module,) = scan_lora(tmp_path / "x.safetensors").modules
    with pytest.raises(UserError, match="more than any layer"):
        module.delta()
    with pytest.raises(UserError, match="more than any layer"):
        reduce_to_rank(module, 4)


@pytest.mark.parametrize(
    "key",
    [
        f"diffusion_model.input_blocks.{'1' * 5000}.1.proj_in.lora_up.weight",
        f"lora_unet_down_blocks_{'1' * 5000}_attentions_0_proj_in.lora_up.weight",
        f"unet:{'1' * 5000}:up",
        "x" * 1_000_000,
    ],
    ids=["comfyui", "kohya", "cloneofsimo", "no name"],
)
def test_keys_with_thousands_of_digits_are_unknown(tmp_path: Path, key: str) -> None:
    save_file({**lora_tensors(small_layers()), key: torch.ones(4, 4)}, tmp_path / "x.safetensors")
    try:
        info = inspect_lora(tmp_path / "x.safetensors")
    except UserError as error:
        assert len(error.message) < 6000
    else:
        assert info.unknown_keys == (key,)
        assert len(card(tmp_path / "x.safetensors").problem) < 2000


def test_last_matching_alpha_pattern_applies(tmp_path: Path) -> None:
    """PEFT treats a pattern as a regular expression for the end of the name."""
    layers = ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q")
    tensors: dict[str, torch.Tensor] = {}
    for layer in layers:
        tensors |= {f"unet.{layer}.lora_A.weight": torch.ones(4, 320), f"unet.{layer}.lora_B.weight": torch.ones(320, 4)}
    patterns: dict[str, float] = {"to_q": 1.0, "attn2.to_q": 2.0, **{f"none {number}": 3.0 for number in range(100)}, "n2.to_q": 8.0}
    config = {"unet.lora_alpha": 4.0, "unet.alpha_pattern": patterns}
    save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": json.dumps(config), "ss_base_model_version": "sd_v1"})
    alphas = {module.name: float(module.alpha) for module in read_lora(tmp_path / "x.safetensors") if module.alpha is not None}
    for layer in layers:
        wanted = [value for pattern, value in patterns.items() if re.fullmatch(rf".*\.?{re.escape(pattern)}", layer)]
        assert alphas[layer] == wanted[-1]
