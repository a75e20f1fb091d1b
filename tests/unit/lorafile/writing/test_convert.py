"""Conversion and back, rank reduction, merging and editing, compared with plain matrix arithmetic."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.unit.lorafile.helpers import lora_tensors, same_modules, sd15_layers, small_layers
from trainer.cli import main
from trainer.core.errors import UserError
from trainer.lorafile import (
    LoraModule,
    LoraWeights,
    common_dtype,
    convert,
    edit_metadata,
    inspect_lora,
    merge,
    merge_into_checkpoint,
    read_lora,
    reduce_rank,
    write_lora,
)  # fmt: skip
from trainer.lorafile.algorithms.shape_checks import shape_problem
from trainer.lorafile.container import read_safetensors_header
from trainer.lorafile.folded_alpha import fold, unfold

METADATA = {"ss_output_name": "style", "modelspec.title": "Style", "ss_network_dim": "4", "ss_network_alpha": "2.0", "custom": "ünïcode ✓"}


def lora_file(path: Path, **options: object) -> Path:
    tensors = lora_tensors(small_layers(), **options)  # type: ignore[arg-type]
    for name, width in (("self_attn_q_proj", 768), ("mlp_fc1", 768)):
        key = f"lora_te_text_model_encoder_layers_0_{name}"
        rank = 4
        dtype = tensors["lora_unet_down_blocks_0_attentions_0_proj_in.alpha"].dtype
        tensors[f"{key}.lora_down.weight"] = torch.randn(rank, width, generator=torch.Generator().manual_seed(3)).to(dtype)
        tensors[f"{key}.lora_up.weight"] = torch.randn(
            768 if "q_proj" in name else 3072, rank, generator=torch.Generator().manual_seed(4)
        ).to(dtype)
        tensors[f"{key}.alpha"] = torch.tensor(float(options.get("alpha", 4.0)), dtype=dtype)  # type: ignore[arg-type]
    save_file(tensors, path, METADATA)
    return path


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


def lokr(outputs: int, inputs: int) -> dict[str, torch.Tensor]:
    return {"lokr_w1": torch.randn(4, 4), "lokr_w2_a": torch.randn(outputs // 4, 2), "lokr_w2_b": torch.randn(2, inputs // 4)}


def weights_of(*modules: LoraModule) -> LoraWeights:
    return LoraWeights(modules, "sd1", "kohya")


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


# --- rank ----------------------------------------------------------------------------------------------------------------------


def test_rank_reduction_is_optimal_and_reports_exact_error(tmp_path: Path) -> None:
    source = read_lora(lora_file(tmp_path / "a.safetensors", rank=8, alpha=4.0, dtype=torch.float32))
    reduced, report = reduce_rank(source, 2)
    lost = total = best = 0.0
    for old, new in zip(source, reduced, strict=True):
        matrix = old.delta().flatten(1)
        assert new.rank == 2 and new.scale == pytest.approx(old.scale)
        assert new.tensors["lora_down.weight"].shape[1:] == old.tensors["lora_down.weight"].shape[1:]
        lost += float((matrix - new.delta().flatten(1)).norm()) ** 2
        total += float(matrix.norm()) ** 2
        best += float(torch.linalg.svdvals(matrix)[2:].norm()) ** 2  # Eckart-Young
    assert report.error == pytest.approx((lost / total) ** 0.5, rel=1e-3)
    assert lost == pytest.approx(best, rel=1e-3)
    assert report.changed == len(source.modules)
    assert reduced.metadata["ss_network_dim"] == "2" and reduced.metadata["ss_network_alpha"] == "1.0"


def test_worst_layer_does_not_depend_on_the_sign_of_alpha(tmp_path: Path) -> None:
    reports = []
    for alpha in (4.0, -4.0):
        _, report = reduce_rank(read_lora(lora_file(tmp_path / "a.safetensors", rank=8, alpha=alpha, dtype=torch.float32)), 2)
        reports.append((report.worst_layer, round(report.worst_error, 6), round(report.error, 6)))
    assert reports[0] == reports[1] and reports[0][1] >= reports[0][2] > 0


def test_layers_of_lower_rank_stay_unchanged(tmp_path: Path) -> None:
    source = read_lora(lora_file(tmp_path / "a.safetensors"))
    reduced, report = reduce_rank(source, 16)
    assert same_modules(source.modules, reduced.modules)
    assert (report.error, report.changed) == (0.0, 0)
    with pytest.raises(UserError, match="at least 1"):
        reduce_rank(source, 0)


@pytest.mark.parametrize("size", [(64, 48), (320, 768)])
def test_other_algorithms_are_approximated_by_lora(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    module = LoraModule("unet", "mid_block.attentions.0.proj_in", "lokr", lokr(*size), torch.tensor(1.0))
    exact, report = reduce_rank(weights_of(module), 8)  # 4 x 2: the Kronecker product has no higher rank
    assert report.error < 1e-5
    assert torch.allclose(exact.modules[0].delta(), module.delta(), atol=1e-4)
    _, coarse = reduce_rank(weights_of(module), 3)
    singular = torch.linalg.svdvals(module.delta())
    assert coarse.error == pytest.approx(float(singular[3:].norm() / singular.norm()), rel=0.02)


def test_tucker_convolution_becomes_plain() -> None:
    torch.manual_seed(0)
    tensors = {
        "lora_up.weight": torch.randn(8, 3, 1, 1),
        "lora_mid.weight": torch.randn(3, 3, 3, 3),
        "lora_down.weight": torch.randn(3, 6, 1, 1),
    }
    module = LoraModule("unet", "down_blocks.0.resnets.0.conv1", "lora", tensors, torch.tensor(3.0))
    plain, report = reduce_rank(weights_of(module), 8)
    assert report.error < 1e-5
    assert torch.allclose(plain.modules[0].delta(), module.delta(), atol=1e-4)
    image = torch.randn(1, 6, 8, 8)
    inner = torch.nn.functional.conv2d(torch.nn.functional.conv2d(image, tensors["lora_down.weight"]), tensors["lora_mid.weight"])
    assert torch.allclose(
        torch.nn.functional.conv2d(image, module.delta()), torch.nn.functional.conv2d(inner, tensors["lora_up.weight"]), atol=1e-3
    )


# --- merge ---------------------------------------------------------------------------------------------------------------------


def test_merged_change_is_the_weighted_sum(tmp_path: Path) -> None:
    first = read_lora(lora_file(tmp_path / "a.safetensors", alpha=2.0, seed=1))
    few = {name: size for name, size in list(small_layers().items())[:5]}
    save_file(
        lora_tensors(few, rank=6, alpha=3.0, seed=2),
        tmp_path / "b.safetensors",
        {"modelspec.title": "B", "modelspec.trigger_phrase": "bbb"},
    )
    second = read_lora(tmp_path / "b.safetensors")
    merged, report = merge([(first, 0.5), (second, -0.8)])
    assert report is None
    others = {module.name: module for module in second}
    for module in merged:
        expected = next(m for m in first if m.name == module.name).delta() * 0.5
        if module.name in others:
            expected = expected - 0.8 * others[module.name].delta()
            assert module.rank == 10
        assert torch.allclose(module.delta(), expected, atol=1e-5)
    assert merged.metadata["modelspec.merged_from"] == "Style, B"
    assert merged.metadata["modelspec.trigger_phrase"] == "bbb"
    assert merged.metadata["custom"] == METADATA["custom"]
    origin = json.loads(merged.metadata["animelora.merged"])
    assert [part["strength"] for part in origin] == [0.5, -0.8]
    write_lora(tmp_path / "c.safetensors", convert(merged, "kohya", torch.float16))
    assert inspect_lora(tmp_path / "c.safetensors").usable


def test_merge_refuses_incompatible_parts(tmp_path: Path) -> None:
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    one = {"lora_up.weight": torch.ones(1280, 2), "lora_down.weight": torch.ones(2, 768)}
    two = {"lora_up.weight": torch.ones(1280, 2), "lora_down.weight": torch.ones(2, 1024)}
    sd1 = LoraWeights((LoraModule("unet", name, "lora", one),), "sd1", "kohya", context_width=768)
    sd2 = LoraWeights((LoraModule("unet", name, "lora", two),), "sd2", "kohya", context_width=1024)
    with pytest.raises(UserError, match=r"Stable Diffusion 1.x and Stable Diffusion 2.x"):
        merge([(sd1, 1.0), (sd2, 1.0)])
    dora = LoraModule("unet", name, "lora", {**one, "dora_scale": torch.ones(1280, 1)})
    with pytest.raises(UserError, match="DoRA"):
        merge([(weights_of(dora), 1.0), (sd1, 1.0)])
    kron = LoraModule("unet", name, "lokr", lokr(1280, 768))
    with pytest.raises(UserError, match="lokr"):
        merge([(weights_of(kron), 1.0), (sd1, 1.0)])
    full = [weights_of(LoraModule("unet", name, "full", {"diff": torch.ones(1280, width)})) for width in (768, 1024)]
    with pytest.raises(UserError, match="different sizes"):
        merge([(weights, 1.0) for weights in full])


def loha(outputs: int, inputs: int, rank: int) -> dict[str, torch.Tensor]:
    return {f"hada_w{n}_{side}": torch.randn((outputs, rank) if side == "a" else (rank, inputs)) for n in "12" for side in "ab"}


def tucker(outputs: int, inputs: int, rank: int) -> dict[str, torch.Tensor]:
    matrices = {"lora_up.weight": torch.randn(outputs, rank, 1, 1), "lora_down.weight": torch.randn(rank, inputs, 1, 1)}
    return {**matrices, "lora_mid.weight": torch.randn(rank, rank, 3, 3)}


@pytest.mark.parametrize("algorithm", ["loha", "lokr", "tucker"])
def test_merge_with_rank_is_optimal_and_reports_exact_error(algorithm: str) -> None:
    """The result is the best approximation of the exact sum (Eckart-Young) and not an approximation of an approximation."""
    torch.manual_seed(0)
    own = [
        LoraModule("unet", name, "lora" if algorithm == "tucker" else algorithm, factors, torch.tensor(2.0))
        for name in ("down_blocks.0.resnets.0.conv1", "down_blocks.0.resnets.1.conv1")
        for factors in [{"loha": loha(64, 48, 8), "lokr": lokr(64, 48), "tucker": tucker(64, 48, 8)}[algorithm]]
    ]
    tail = (1, 1) if algorithm == "tucker" else ()
    factors = {"lora_up.weight": torch.randn(64, 3, *tail), "lora_down.weight": torch.randn(3, 48, *(3, 3) if tail else ())}
    other = LoraModule("unet", own[0].name, "lora", factors, torch.tensor(3.0))
    names = {"ss_network_module": "lycoris.kohya", "ss_network_args": '{"algo": "loha"}', "ss_network_dim": "8"}
    first = LoraWeights(tuple(own), "sd1", "kohya", names)
    merged, report = merge([(first, 0.5), (weights_of(other), -2.0)], rank=4)
    exact = [(0.5 * own[0].delta() - 2.0 * other.delta()).flatten(1), 0.5 * own[1].delta().flatten(1)]
    best = sum(float(torch.linalg.svdvals(matrix)[4:].norm()) ** 2 for matrix in exact)
    lost = sum(float((module.delta().flatten(1) - matrix).norm()) ** 2 for module, matrix in zip(merged, exact, strict=True))
    total = sum(float(matrix.norm()) ** 2 for matrix in exact)
    assert best / total > 0.01 and lost == pytest.approx(best, rel=1e-3)
    assert report is not None and report.changed == 2
    assert report.error == pytest.approx((lost / total) ** 0.5, rel=1e-3)
    assert [module.rank for module in merged] == [4, 4]
    assert merged.metadata["ss_network_module"] == "networks.lora" and "ss_network_args" not in merged.metadata


def test_rank_reduction_removes_arguments_of_another_algorithm() -> None:
    names = {"ss_network_module": "lycoris.kohya", "ss_network_args": '{"algo": "lokr"}', "ss_network_dim": "2"}
    module = LoraModule("unet", "mid_block.attentions.0.proj_in", "lokr", lokr(64, 32), torch.tensor(1.0))
    reduced, _ = reduce_rank(LoraWeights((module,), "sd1", "kohya", names), 4)
    assert "ss_network_args" not in reduced.metadata and reduced.metadata["ss_network_module"] == "networks.lora"
    factors = {"lora_up.weight": torch.randn(64, 8), "lora_down.weight": torch.randn(8, 32)}
    plain = LoraWeights(
        (replace(module, algorithm="lora", tensors=factors),), "sd1", "kohya", {**names, "ss_network_args": '{"conv_dim": 4}'}
    )
    assert reduce_rank(plain, 4)[0].metadata["ss_network_args"] == '{"conv_dim": 4}'


@pytest.mark.parametrize("size", [1e-2, 1e-3, 3e-4])
def test_merge_with_small_scale_is_accurate_in_fp16(size: float) -> None:
    """With kohya's alpha of 1 at rank 128 and small up weights, the product with the scale would be subnormal in fp16."""
    torch.manual_seed(0)
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    modules = [
        LoraModule(
            "unet", name, "lora",
            {"lora_up.weight": (torch.randn(320, 128) * size).half(), "lora_down.weight": (torch.randn(128, 768) * 0.02).half()},
            torch.tensor(1.0),
        )
        for _ in range(2)
    ]  # fmt: skip
    merged, _ = merge([(weights_of(module), 0.6) for module in modules])
    narrow = {key.split(".", 1)[1]: tensor for key, tensor in convert(merged, "kohya", torch.float16).tensors.items()}
    product = narrow["lora_up.weight"].double() @ narrow["lora_down.weight"].double() * (float(narrow["alpha"]) / 256)
    pairs = [(m.tensors["lora_up.weight"].double(), m.tensors["lora_down.weight"].double()) for m in modules]
    exact = 0.6 / 128 * torch.stack([up @ down for up, down in pairs]).sum(0)
    assert float((product - exact).norm() / exact.norm()) < 5e-4  # one rounding to fp16: 2**-11


def test_common_dtype_is_the_widest_and_at_least_16_bits() -> None:
    def of(dtype: torch.dtype) -> LoraWeights:
        return weights_of(LoraModule("unet", "conv_out", "full", {"diff": torch.ones(2, 2).to(dtype)}))

    small, half, brain, wide = torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.float32
    for kinds, expected in (
        ([small], half), ([small, half], half), ([small, brain], brain), ([half, half], half), ([brain], brain),
        ([half, brain], wide), ([half, wide], wide), ([], None),
    ):  # fmt: skip
        assert common_dtype([of(kind) for kind in kinds]) is expected


# --- into a checkpoint ---------------------------------------------------------------------------------------------------------

UNET_KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def small_checkpoint(path: Path, dtype: torch.dtype, width: int = 768) -> dict[str, torch.Tensor]:
    block = "model.diffusion_model.input_blocks.1.1"
    tensors = {f"{block}.proj_in.weight": torch.randn(320, 320, 1, 1), "other": torch.randn(7)}
    tensors[UNET_KEY] = torch.randn(320, width)
    tensors["cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"] = torch.randn(3072, 768)
    tensors["model.diffusion_model.input_blocks.1.0.in_layers.2.weight"] = torch.randn(24, 16, 3, 3)
    tensors = {key: tensor.to(dtype) for key, tensor in tensors.items()}
    save_file(tensors, path, {"modelspec.title": "Base"})
    return tensors


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_merge_into_checkpoint_changes_only_adapted_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    before = small_checkpoint(tmp_path / "base.safetensors", dtype)
    prefix = "down_blocks.0.attentions.0"
    conv = {"lora_up.weight": torch.randn(320, 2, 1, 1), "lora_down.weight": torch.randn(2, 320, 1, 1)}
    dora = {"lora_up.weight": torch.randn(320, 2), "lora_down.weight": torch.randn(2, 768), "dora_scale": torch.rand(320, 1)}
    text = {"lora_up.weight": torch.randn(3072, 2), "lora_down.weight": torch.randn(2, 768)}
    loha = {
        "hada_w1_a": torch.randn(24, 2),
        "hada_w1_b": torch.randn(2, 144),
        "hada_w2_a": torch.randn(24, 2),
        "hada_w2_b": torch.randn(2, 144),
    }
    weights = weights_of(
        LoraModule("unet", f"{prefix}.proj_in", "lora", conv, torch.tensor(1.0)),
        LoraModule("unet", f"{prefix}.transformer_blocks.0.attn2.to_k", "lora", dora, torch.tensor(2.0)),
        LoraModule("te1", "text_model.encoder.layers.0.mlp.fc1", "lora", text),
        LoraModule("unet", "down_blocks.0.resnets.0.conv1", "loha", loha),
    )
    assert merge_into_checkpoint(tmp_path / "base.safetensors", [(weights, 0.7)], tmp_path / "out.safetensors") == 4
    after = load_file(tmp_path / "out.safetensors")
    assert torch.equal(after["other"], before["other"])

    def near(key: str, expected: torch.Tensor) -> bool:
        return (after[key].dtype == dtype and torch.equal(after[key], expected.to(dtype))) or torch.allclose(
            after[key].float(), expected, rtol=2e-3, atol=2e-3
        )

    key = "model.diffusion_model.input_blocks.1.1.proj_in.weight"
    assert near(
        key, before[key].float() + 0.7 * 0.5 * (conv["lora_up.weight"].flatten(1) @ conv["lora_down.weight"].flatten(1))[..., None, None]
    )
    base = before[UNET_KEY].float()
    total = base + dora["lora_up.weight"] @ dora["lora_down.weight"]
    decomposed = total / total.norm(dim=1, keepdim=True) * dora["dora_scale"]
    assert near(UNET_KEY, base + 0.7 * (decomposed - base))
    key = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
    product = (loha["hada_w1_a"] @ loha["hada_w1_b"]) * (loha["hada_w2_a"] @ loha["hada_w2_b"])
    assert near(key, before[key].float() + 0.7 * product.reshape(24, 16, 3, 3))
    assert read_safetensors_header(tmp_path / "out.safetensors").metadata["modelspec.merged_from"] == "Base, unnamed LoRA"


def test_merge_into_checkpoint_refuses_misshapen_magnitudes(tmp_path: Path) -> None:
    """LoHa of a convolution is a matrix (out, in * 9), which alone does not determine the number of inputs."""
    torch.manual_seed(0)
    before = small_checkpoint(tmp_path / "base.safetensors", torch.float32)
    factors, name = loha(24, 144, 2), "down_blocks.0.resnets.0.conv1"
    for inputs, fits in ((16, True), (48, False)):
        tensors = {**factors, "dora_scale": torch.rand(1, inputs, 1, 1) + 0.5}
        assert shape_problem("loha", tensors) == ""
        parts = [(weights_of(LoraModule("unet", name, "loha", tensors)), 1.0)]
        if not fits:
            with pytest.raises(UserError, match=r"dora_scale \[1, 48, 1, 1\], which does not fit"):
                merge_into_checkpoint(tmp_path / "base.safetensors", parts, tmp_path / "out.safetensors")
            continue
        merge_into_checkpoint(tmp_path / "base.safetensors", parts, tmp_path / "out.safetensors")
        key = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
        change = (factors["hada_w1_a"] @ factors["hada_w1_b"]) * (factors["hada_w2_a"] @ factors["hada_w2_b"])
        total = before[key] + change.reshape(24, 16, 3, 3)
        expected = total / total.square().sum((0, 2, 3), keepdim=True).sqrt() * tensors["dora_scale"]
        assert torch.allclose(load_file(tmp_path / "out.safetensors")[key], expected, rtol=1e-4, atol=1e-5)


def test_merge_into_checkpoint_changes_thirds_of_openclip_matrix(tmp_path: Path) -> None:
    joint = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"
    base = torch.randn(12, 4)
    save_file({joint: base, UNET_KEY: torch.zeros(640, 2048)}, tmp_path / "base.safetensors")
    parts = {f"{n}_proj": {"lora_up.weight": torch.randn(4, 1), "lora_down.weight": torch.randn(1, 4)} for n in "qkv"}
    modules = tuple(LoraModule("te2", f"text_model.encoder.layers.0.self_attn.{name}", "lora", t) for name, t in parts.items())
    merge_into_checkpoint(tmp_path / "base.safetensors", [(LoraWeights(modules, "sdxl", "kohya"), 1.0)], tmp_path / "out.safetensors")
    expected = base + torch.cat([t["lora_up.weight"] @ t["lora_down.weight"] for t in parts.values()])
    assert torch.allclose(load_file(tmp_path / "out.safetensors")[joint], expected)


def test_merge_into_checkpoint_refuses_other_models(tmp_path: Path) -> None:
    small_checkpoint(tmp_path / "sd2.safetensors", torch.float16, width=1024)
    small_checkpoint(tmp_path / "sd1.safetensors", torch.float16)
    weights = read_lora(lora_file(tmp_path / "a.safetensors"))
    with pytest.raises(UserError, match=r"Stable Diffusion 1.x.*Stable Diffusion 2.x"):
        merge_into_checkpoint(tmp_path / "sd2.safetensors", [(weights, 1.0)], tmp_path / "out.safetensors")
    with pytest.raises(UserError, match="lacks"):
        merge_into_checkpoint(tmp_path / "sd1.safetensors", [(weights, 1.0)], tmp_path / "out.safetensors")
    with pytest.raises(UserError, match="overwrite the original"):
        merge_into_checkpoint(tmp_path / "sd1.safetensors", [(weights, 1.0)], tmp_path / "sd1.safetensors")
    with pytest.raises(UserError, match="not a Stable Diffusion checkpoint"):
        merge_into_checkpoint(tmp_path / "a.safetensors", [(weights, 1.0)], tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


# --- metadata ------------------------------------------------------------------------------------------------------------------


def test_editing_metadata_keeps_tensors_and_other_entries(tmp_path: Path) -> None:
    source = lora_file(tmp_path / "a.safetensors")
    Image.new("RGB", (700, 500), (10, 200, 90)).save(tmp_path / "thumb.png")
    changes = {"title": "Neuer Titel", "trigger": "ohwx, girl", "custom": "", "thumbnail": str(tmp_path / "thumb.png"), "my.key": "v"}
    edit_metadata(source, tmp_path / "b.safetensors", changes)
    info = inspect_lora(tmp_path / "b.safetensors")
    assert info.title == "Neuer Titel" and info.trigger_words == ("ohwx", "girl")
    assert info.thumbnail is not None and max(info.thumbnail.size) == 256
    assert info.metadata["ss_output_name"] == "style" and info.metadata["my.key"] == "v" and "custom" not in info.metadata
    before, after = source.read_bytes(), (tmp_path / "b.safetensors").read_bytes()
    assert before[8 + int.from_bytes(before[:8], "little") :] == after[8 + int.from_bytes(after[:8], "little") :]
    edit_metadata(source, source, {"author": "me"})
    assert inspect_lora(source).metadata["modelspec.author"] == "me"
    with pytest.raises(UserError, match="does not exist"):
        edit_metadata(source, source, {"thumbnail": str(tmp_path / "none.png")})
    (tmp_path / "bad.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        edit_metadata(source, source, {"thumbnail": str(tmp_path / "bad.png")})


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
