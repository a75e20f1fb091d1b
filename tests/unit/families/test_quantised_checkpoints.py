"""Quantised checkpoints are dequantised exactly, and unknown quantisations are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from trainer.core.errors import UserError
from trainer.families import family_named, family_of, open_checkpoint

CPU = torch.device("cpu")
UNET = "model.diffusion_model."
QUERY = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn1.to_q"  # (64, 64)


@pytest.fixture(scope="module")
def exact(shallow_checkpoint: Path) -> dict[str, torch.Tensor]:
    """The shallow checkpoint, its linear weights rounded so that fp8 with a scale of 1/256 represents them exactly."""
    tensors = load_file(str(shallow_checkpoint))
    for key in layers(tensors):
        tensors[key] = (tensors[key].float() * 256).to(torch.float8_e4m3fn).float() / 256
    return tensors


def layers(tensors: dict[str, torch.Tensor]) -> list[str]:
    """The linear weights of UNet and text encoder, the ones that tools quantise."""
    return [key for key, value in tensors.items() if key.endswith(".weight") and value.dim() == 2 and "embedding" not in key]


def written(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file(tensors, path, metadata=metadata)
    return path


def models(path: Path) -> dict[str, torch.Tensor]:
    """Every weight of all three models in fp32."""
    checkpoint, family = open_checkpoint(str(path)), family_named("sd1")
    assert family_of(checkpoint) is family
    loaded = {"unet": family.load_denoiser(checkpoint, torch.float32), "vae": family.load_vae(checkpoint, torch.float32)}
    loaded["text"] = family.load_text_encoder(checkpoint, torch.float32, CPU).modules["te1"]
    return {f"{name}.{key}": value for name, model in loaded.items() for key, value in model.state_dict().items()}


def in_fp8(tensors: dict[str, torch.Tensor], layout: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors in scaled fp8 with a scale of 1/256, in one of the layouts that tools write."""
    result, described = dict(tensors), {}
    for key in layers(tensors):
        layer = key.removesuffix(".weight")
        result[key] = (tensors[key].float() * 256).to(torch.float8_e4m3fn)
        scale, description = torch.tensor(1 / 256), {"format": "float8_e4m3fn"}
        if layout == "scale_weight":
            result[f"{layer}.scale_weight"], result[f"{layer}.scale_input"] = scale, torch.tensor(3.0)
        elif layout == "scale of each output":
            result[f"{layer}.scale_weight"] = scale.expand(len(tensors[key]), 1).contiguous()
        elif layout == "scale of each block":
            result[f"{layer}.scale_weight"] = scale.expand(len(tensors[key]), 2, 1).contiguous()
        else:
            result[f"{layer}.weight_scale"], result[f"{layer}.input_scale"] = scale, torch.tensor(3.0)
            if layout == "comfy_quant":
                result[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(description).encode()), dtype=torch.uint8)
            else:
                described[layer] = description
    if layout == "scale_weight":
        result[f"{UNET}scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
        result["cond_stage_model.transformer.scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    return result, {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": described})} if described else {}


@pytest.mark.parametrize("layout", ["scale_weight", "scale of each output", "scale of each block", "comfy_quant", "metadata"])
def test_scaled_fp8_restores_original_weights(exact: dict[str, torch.Tensor], tmp_path: Path, layout: str) -> None:
    tensors, metadata = in_fp8(exact, layout)
    plain, scaled = models(written(tmp_path / "plain.safetensors", exact)), models(written(tmp_path / "fp8.safetensors", tensors, metadata))
    assert plain.keys() == scaled.keys()
    for key, value in plain.items():
        assert torch.equal(value, scaled[key]), key


def test_opening_reads_all_descriptions_in_one_pass(
    exact: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each opening parses the header, which takes a large checkpoint 10 ms."""
    path = written(tmp_path / "fp8.safetensors", in_fp8(exact, "comfy_quant")[0])
    opened, safe_open = [], safetensors.safe_open

    def counted(*arguments: Any, **options: Any) -> Any:
        opened.append(arguments)
        return safe_open(*arguments, **options)

    monkeypatch.setattr(safetensors, "safe_open", counted)
    assert len(open_checkpoint(str(path)).file.quantised) == len(layers(exact)) > 10
    assert len(opened) == 3  # shapes, metadata, descriptions


def test_unscaled_fp8_is_read_unchanged(exact: dict[str, torch.Tensor], tmp_path: Path) -> None:
    tensors = {key: value.to(torch.float8_e4m3fn) if key in layers(exact) else value for key, value in exact.items()}
    key = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    assert torch.equal(models(written(tmp_path / "fp8.safetensors", tensors))[f"unet.{key}"], tensors[f"{QUERY}.weight"].float())


def test_pickled_checkpoint_is_dequantised(exact: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": in_fp8(exact, "scale_weight")[0]}, tmp_path / "fp8.ckpt")
    checkpoint = open_checkpoint(str(tmp_path / "fp8.ckpt"))
    read = family_named("sd1").read_denoiser(checkpoint, torch.float32)
    assert torch.equal(read[f"{QUERY}.weight"], exact[f"{QUERY}.weight"])


def int8(exact: dict[str, torch.Tensor], weight: torch.Tensor, scale: torch.Tensor, **description: Any) -> dict[str, torch.Tensor]:
    """The checkpoint with one layer in ComfyUI's int8_tensorwise."""
    text = json.dumps({"format": "int8_tensorwise", **description}).encode()
    described = torch.tensor(list(text), dtype=torch.uint8)
    return {**exact, f"{QUERY}.weight": weight, f"{QUERY}.weight_scale": scale, f"{QUERY}.comfy_quant": described}


def test_int8_is_multiplied_by_output_scales(exact: dict[str, torch.Tensor], tmp_path: Path) -> None:
    codes, scale = torch.randint(-127, 128, (64, 64), dtype=torch.int8), torch.rand(64, 1)
    path = written(tmp_path / "int8.safetensors", int8(exact, codes, scale))
    read = family_named("sd1").read_denoiser(open_checkpoint(str(path)), torch.float32)[f"{QUERY}.weight"]
    np.testing.assert_allclose(read.numpy(), codes.numpy() * scale.numpy(), rtol=1e-6)


def test_rotated_int8_is_rotated_back(exact: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """The rotation multiplies each group of inputs by an orthogonal matrix: written here with numpy, entry by entry."""
    size = 16
    # the Kronecker square of the 4 x 4 matrix that is -1 on its antidiagonal: a sign for each base-4 digit
    matrix = np.array([[np.prod([-1 if a + b == 3 else 1 for a, b in ((i // 4, j // 4), (i % 4, j % 4))]) for j in range(size)]
                       for i in range(size)]) / 4  # fmt: skip
    assert np.allclose(matrix @ matrix.T, np.eye(size))
    weight = np.random.default_rng(0).integers(-6, 7, (64, 64)).astype(np.float32)
    rotated = (weight.reshape(64, 4, size) @ matrix.T).reshape(64, 64)
    codes = torch.tensor(np.rint(rotated * 4), dtype=torch.int8)  # quarters: exact, as the matrix has entries of a quarter
    tensors = int8(exact, codes, torch.tensor(0.25), params={"convrot": True, "convrot_groupsize": size})
    read = family_named("sd1").read_denoiser(open_checkpoint(str(written(tmp_path / "rotated.safetensors", tensors))), torch.float32)
    np.testing.assert_allclose(read[f"{QUERY}.weight"].numpy(), weight, atol=1e-5)


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({f"{QUERY}.weight": torch.zeros(64, 64, dtype=torch.uint8)}, "uint8|U8"),
        ({f"{QUERY}.weight.quant_map": torch.zeros(16)}, "quant_map"),
        ({f"{QUERY}.comfy_quant": torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)}, "nvfp4"),
        ({f"{QUERY}.comfy_quant": torch.tensor(list(b"[[["), dtype=torch.uint8)}, "None"),
        (int8({}, torch.zeros(64, 64, dtype=torch.int8), torch.ones(1), convrot=True, convrot_groupsize=10**12), "groups of 1000000000000"),
    ],
)
def test_unknown_quantisation_is_refused_on_opening(
    exact: dict[str, torch.Tensor], tmp_path: Path, more: dict[str, torch.Tensor], word: str
) -> None:
    with pytest.raises(UserError, match=word):
        open_checkpoint(str(written(tmp_path / "odd.safetensors", {**exact, **more})))


@pytest.mark.parametrize("shape", [(7,), (64, 3, 1), (64, 0, 1), (16, 2, 1)])
def test_misshapen_scale_is_refused(exact: dict[str, torch.Tensor], tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = written(tmp_path / "odd.safetensors", {**exact, f"{QUERY}.scale_weight": torch.ones(shape)})
    with pytest.raises(UserError, match="to_q"):
        family_named("sd1").read_denoiser(open_checkpoint(str(path)), torch.float32)
