"""Conversion between the forms of LoRA files and back gives the same bits, and the same change where it cannot."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.unit.lorafile.factors import METADATA, lokr, lora_file, weights_of
from tests.unit.lorafile.helpers import lora_tensors, same_modules, sd15_layers, small_layers
from trainer.cli import main
from trainer.core.errors import UserError
from trainer.lorafile import (
    LoraModule,
    LoraWeights,
    convert,
    merge_into_checkpoint,
    read_lora,
    reduce_rank,
    write_lora,
)  # fmt: skip
from trainer.lorafile.folded_alpha import fold, unfold


def through(source: Path, target: Path, form: str, dtype: torch.dtype | None = None) -> LoraWeights:
    write_lora(target, convert(read_lora(source), form, dtype))
    return read_lora(target)


@pytest.mark.parametrize("form", ["diffusers", "peft"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("alpha", [4.0, 2.0, -3.0])
def test_8_bit_weights_survive_conversion_and_back(tmp_path: Path, form: str, dtype: torch.dtype, alpha: float) -> None:
    source = lora_file(tmp_path / "a.safetensors", alpha=alpha, dtype=dtype)
    middle = through(source, tmp_path / "b.safetensors", form)
    assert (middle.format, middle.dtype) == (form, dtype)
    through(tmp_path / "b.safetensors", tmp_path / "c.safetensors", "kohya")
    before, after = load_file(source), load_file(tmp_path / "c.safetensors")
    assert before.keys() == after.keys()
    for key in before:
        assert before[key].dtype == after[key].dtype and torch.equal(before[key].view(torch.uint8), after[key].view(torch.uint8)), key


@pytest.mark.parametrize("form", ["kohya", "diffusers", "peft", "comfyui"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("alpha", [4.0, 2.0, 0.5, 3.0, 1.7])
def test_conversion_and_back_is_bit_exact(tmp_path: Path, form: str, dtype: torch.dtype, alpha: float) -> None:
    source = lora_file(tmp_path / "a.safetensors", alpha=alpha, dtype=dtype)
    middle = through(source, tmp_path / "b.safetensors", form)
    assert middle.format == form
    back = through(tmp_path / "b.safetensors", tmp_path / "c.safetensors", "kohya")
    assert same_modules(read_lora(source).modules, back.modules)
    before, after = load_file(source), load_file(tmp_path / "c.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)
    assert {key: value for key, value in back.metadata.items() if key in METADATA} == METADATA


def test_folded_alpha_is_exact_in_fp32_and_rounded_once_in_fp16(tmp_path: Path) -> None:
    source = lora_file(tmp_path / "a.safetensors", alpha=3.0)
    original = {(m.component, m.name): m for m in read_lora(source)}
    wide = through(source, tmp_path / "wide.safetensors", "diffusers", torch.float32)
    back = through(tmp_path / "wide.safetensors", tmp_path / "back.safetensors", "kohya", torch.float16)
    assert same_modules(tuple(original.values()), back.modules)
    assert convert(read_lora(source), "diffusers").notes and not convert(read_lora(source), "diffusers", torch.float32).notes
    narrow = convert(read_lora(source), "peft")
    prefix = {"unet": "unet", "te1": "text_encoder"}
    exact = {f"{prefix[part]}.{name}": module.tensors["lora_down.weight"].double() * 0.75 for (part, name), module in original.items()}
    lost = {name: narrow.tensors[f"{name}.lora_A.weight"].double() - matrix for name, matrix in exact.items()}
    worst = max(float(lost[name].norm() / exact[name].norm()) for name in exact)
    assert narrow.notes[0].count(f"rounded {len(exact)} layers (relative error at most {worst:.1e})") == 1 and worst < 2**-11
    for tensors, scale in ((convert(read_lora(source), "peft").tensors, 1.0), (convert(wide, "peft").tensors, 1.0)):
        name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
        product = tensors[f"unet.{name}.lora_B.weight"].float() @ tensors[f"unet.{name}.lora_A.weight"].float() * scale
        expected = original["unet", name].delta()
        assert torch.allclose(product, expected, rtol=2e-3, atol=1e-4)


def test_lost_bits_are_stored_up_to_the_limit(tmp_path: Path) -> None:
    modules = read_lora(lora_file(tmp_path / "a.safetensors", alpha=3.0)).modules
    whole, some = fold(modules, None), fold(modules, None, limit=5000)
    assert whole.lossy == 0 and 0 < some.lossy < len(modules) and len(some.record) < 8000
    assert all(
        torch.equal(a.tensors["lora_down.weight"], b.tensors["lora_down.weight"]) for a, b in zip(whole.modules, some.modules, strict=True)
    )
    back = unfold(some.modules, some.record)
    same = sum(same_modules((a,), (b,)) for a, b in zip(modules, back, strict=True))
    assert same >= len(modules) - some.lossy and not same_modules(modules, back)


def test_record_of_another_matrix_is_ignored(tmp_path: Path) -> None:
    modules = read_lora(lora_file(tmp_path / "a.safetensors", alpha=3.0)).modules
    folded = fold(modules, None)
    table = json.loads(folded.record)
    names = list(table["lost"])

    def nearly(module: LoraModule) -> bool:
        return bool((module.delta() - modules[0].delta()).norm() < 1e-3 * modules[0].delta().norm())

    for wrong in (table["lost"][names[-1]], base64.b64encode(zlib.compress(bytes(10**8))).decode(), ""):
        back = unfold(folded.modules, json.dumps({**table, "lost": {**table["lost"], names[0]: wrong}}))
        assert nearly(back[0]) and same_modules(modules[1:], back[1:])
    for broken in ("not base64", 7, base64.b64encode(b"not zlib").decode()):
        back = unfold(folded.modules, json.dumps({**table, "lost": {names[0]: broken}}))
        assert nearly(back[0])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(alpha=st.floats(0.05, 64), rank=st.integers(1, 9), magnitude=st.floats(1e-7, 100), seed=st.integers(0, 9))
def test_folded_alpha_never_changes_the_effect(alpha: float, rank: int, magnitude: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    up = (torch.randn(6, rank, generator=generator) * magnitude).half().clamp(-6e4, 6e4)
    down = torch.randn(rank, 5, generator=generator).half()
    module = LoraModule("unet", "conv_out", "lora", {"lora_up.weight": up, "lora_down.weight": down}, torch.tensor(alpha))
    converted = convert(LoraWeights((module,), "sd1", "kohya"), "peft", torch.float32).tensors
    product = converted["unet.conv_out.lora_B.weight"].double() @ converted["unet.conv_out.lora_A.weight"].double()
    expected = up.double() @ down.double() * (float(torch.tensor(alpha)) / rank)
    assert torch.allclose(product, expected, rtol=1e-5, atol=1e-5 * float(up.abs().max()))


def test_value_beyond_fp16_is_refused(tmp_path: Path) -> None:
    tensors = lora_tensors(small_layers(), dtype=torch.float32)
    tensors["lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight"][0, 0] = 1e6
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="too large"):
        convert(read_lora(tmp_path / "a.safetensors"), "kohya", torch.float16)


def test_formats_for_plain_lora_refuse_other_algorithms(tmp_path: Path) -> None:
    weights = weights_of(LoraModule("unet", "mid_block.attentions.0.proj_in", "lokr", lokr(64, 32), torch.tensor(1.0)))
    for form in ("diffusers", "peft"):
        with pytest.raises(UserError, match="lokr") as caught:
            convert(weights, form)
        assert "--rank" in caught.value.hint
    assert "lora_unet_mid_block_attentions_0_proj_in.lokr_w1" in convert(weights, "kohya").tensors
    assert "diffusion_model.middle_block.1.proj_in.lokr_w1" in convert(weights, "comfyui").tensors
    reduced, _ = reduce_rank(weights, 8)
    assert convert(reduced, "diffusers").tensors.keys() == {f"unet.mid_block.attentions.0.proj_in.lora.{d}.weight" for d in ("up", "down")}


def test_full_size_file_converts(tmp_path: Path) -> None:
    save_file(lora_tensors(sd15_layers(), rank=2), tmp_path / "a.safetensors", METADATA)
    for form in ("comfyui", "diffusers", "peft"):
        assert len(through(tmp_path / "a.safetensors", tmp_path / f"{form}.safetensors", form).modules) == 192


def test_dora_exported_for_comfyui_gives_trained_weight_by_its_formula(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """ComfyUI's m* (W + D) / (||W|| + eps) equals the trained m (W + D) / ||W + D||, and merging distinguishes both kinds of file."""
    key, name = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight", "mid_block_attentions_0_transformer_blocks_0"
    weight = load_file(tiny_checkpoint)[key].double()
    draw = torch.Generator().manual_seed(0)
    up, down = torch.randn(weight.shape[0], 2, generator=draw), torch.randn(2, weight.shape[1], generator=draw) * 0.1
    magnitude = weight.norm(dim=1, keepdim=True).float() * 1.1
    prefix = f"lora_unet_{name}_attn1_to_q"
    tensors = {f"{prefix}.lora_up.weight": up, f"{prefix}.lora_down.weight": down, f"{prefix}.alpha": torch.tensor(2.0)}
    save_file({**tensors, f"{prefix}.dora_scale": magnitude}, tmp_path / "dora.safetensors", {"ss_base_model_version": "sd_v1"})
    out = tmp_path / "out.safetensors"
    command = ["export", str(tmp_path / "dora.safetensors"), str(out), "--format", "comfyui", "--dtype", "fp16", "--overwrite"]
    assert main([*command, "--base", str(tiny_checkpoint)]) == 0
    moved = read_lora(out)
    (module,) = moved.modules
    scale = module.tensors["dora_scale"]
    assert scale.dtype == torch.float32, "fp16 would round whole rows of the weight"
    whole = weight + module.delta().double()
    wanted = magnitude.double() * whole / whole.norm(dim=1, keepdim=True)
    in_comfyui = scale.double() * whole / (weight.norm(dim=1, keepdim=True) + torch.finfo(torch.float32).eps)
    torch.testing.assert_close(in_comfyui, wanted, rtol=1e-3, atol=1e-5)  # D itself was rounded to fp16
    for source in (tmp_path / "dora.safetensors", out):
        merge_into_checkpoint(tiny_checkpoint, [(read_lora(source), 1.0)], tmp_path / "merged.safetensors")
        torch.testing.assert_close(load_file(tmp_path / "merged.safetensors")[key].double(), wanted, rtol=2e-3, atol=1e-4)
    with pytest.raises(UserError, match="exported for ComfyUI's own loader"):
        convert(moved, "peft")
    assert any("ComfyUI's own loader" in note for note in moved.notes)
    assert main(["export", str(tmp_path / "dora.safetensors"), str(out), "--base", str(tiny_checkpoint), "--overwrite"]) == 1
    twice = ["export", str(out), str(tmp_path / "twice.safetensors"), "--format", "comfyui", "--base", str(tiny_checkpoint)]
    assert main(twice) == 1, "the ratio of the norms would be applied twice"
    assert not (tmp_path / "twice.safetensors").exists()
