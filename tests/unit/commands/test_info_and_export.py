"""``info`` and ``export`` on the command line."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.lorafile.helpers import lora_tensors, raw_safetensors, small_layers
from trainer.cli import main
from trainer.commands.strength import parse_strength
from trainer.lorafile import inspect_lora, kohya_unet_key, read_lora


@pytest.fixture
def style(tmp_path: Path) -> Path:
    path = tmp_path / "style.safetensors"
    save_file(lora_tensors(small_layers(), alpha=2.0), path, {"ss_output_name": "style", "ss_sd_model_name": "base.safetensors"})
    return path


def test_info_prints_text_and_json(style: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(style)]) == 0
    text = capsys.readouterr().out
    assert "Stable Diffusion 1.x" in text and "12 layers of the UNet" in text and "base.safetensors" in text
    assert main(["info", str(style), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {
        "family": "sd1",
        "format": "kohya",
        "algorithm": "lora",
        "rank": 4,
        "alpha": 2.0,
        "problems": [],
        "usable": True,
    }.items() <= data.items()
    assert data["targets"] == {"unet": 12}


def test_info_reports_norm_of_each_layer(style: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(style), "--json"]) == 0
    norms = json.loads(capsys.readouterr().out)["norms"]["unet"]
    changes = {module.name: float(module.delta().double().norm()) for module in read_lora(style)}
    assert norms == pytest.approx(changes, rel=1e-5)
    assert len(set(changes.values())) == 12
    assert main(["info", str(style)]) == 0
    text = capsys.readouterr().out
    largest = max(changes, key=lambda name: changes[name])
    mean = sum(changes.values()) / 12
    assert f"UNet {mean:.3g} on average, {changes[largest]:.3g} at most ({largest})" in text

    full = tmp_path / "full.safetensors"
    save_file({"lora_unet_mid_block_attentions_0_proj_in.diff": 3 * torch.ones(8, 8, 1, 1)}, full)
    assert main(["info", str(full), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["norms"] == {"unet": {"mid_block.attentions.0.proj_in": pytest.approx(24)}}


def test_info_does_not_compute_oversized_products(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bomb, name = tmp_path / "bomb.safetensors", "lora_unet_mid_block_attentions_0_proj_in"
    save_file({f"{name}.lokr_w1": torch.ones(4096, 4096).half(), f"{name}.lokr_w2": torch.ones(4096, 4096).half()}, bomb)  # 2**48 entries
    main(["info", str(bomb), "--json"])
    assert json.loads(capsys.readouterr().out)["norms"] == {}
    many = tmp_path / "many.safetensors"  # more ranks than the layer has entries
    save_file({f"{name}.lora_up.weight": torch.ones(2, 300_000).half(), f"{name}.lora_down.weight": torch.ones(300_000, 2).half()}, many)
    main(["info", str(many), "--json"])
    assert json.loads(capsys.readouterr().out)["norms"] == {"unet": {"mid_block.attentions.0.proj_in": pytest.approx(600_000)}}


def test_info_fails_for_unusable_file(style: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.safetensors").write_bytes(style.read_bytes()[:-5])
    nan = {key: torch.full_like(tensor, float("nan")) for key, tensor in lora_tensors(small_layers()).items()}
    save_file(nan, tmp_path / "nan.safetensors")
    for name, reason in (("broken", "incomplete"), ("nan", "not finite"), ("absent", "does not exist")):
        path = str(tmp_path / f"{name}.safetensors")
        assert main(["info", path]) == 1
        assert reason in capsys.readouterr().err
        assert main(["info", path, "--json"]) == 1
        data = json.loads(capsys.readouterr().out)
        assert data["usable"] is False and reason in " ".join(data["problems"])


def test_export_converts_with_metadata(style: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    options = ["--format", "diffusers", "--dtype", "fp32", "--title", "My style", "--trigger", "ohwx", "--metadata", "a.b=c=d", "x=1"]
    assert main(["export", str(style), str(out), *options]) == 0
    info = inspect_lora(out)
    assert (info.format, info.title, info.trigger_words, info.dtype) == ("diffusers", "My style", ("ohwx",), "float32")
    assert info.metadata["a.b"] == "c=d" and info.metadata["x"] == "1" and info.metadata["ss_output_name"] == "style"
    assert all(tensor.dtype == torch.float32 for tensor in load_file(out).values())


def test_export_reduces_rank_and_reports_error(style: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(style), str(tmp_path / "out.safetensors"), "--rank", "2"]) == 0
    assert "relative error" in capsys.readouterr().out
    assert inspect_lora(tmp_path / "out.safetensors").rank == 2


def test_export_merges_with_strengths(style: Path, tmp_path: Path) -> None:
    other = tmp_path / "pose.safetensors"
    save_file(lora_tensors(small_layers(), seed=5), other)
    out = tmp_path / "out.safetensors"
    assert main(["export", str(style), str(out), "--merge", f"{style}:0.5", f"{other}:0.25", "--dtype", "fp32"]) == 0
    first, second = read_lora(style).modules, read_lora(other).modules
    for module, a, b in zip(read_lora(out), first, second, strict=True):
        assert torch.allclose(module.delta(), 0.5 * a.delta() + 0.25 * b.delta(), atol=1e-6)
    assert main(["export", str(style), str(out), "--merge", f"{other}:0.25", "--overwrite"]) == 0
    both = read_lora(out)
    assert both.dtype == torch.float16
    assert torch.allclose(both.modules[0].delta(), first[0].delta() + 0.25 * second[0].delta(), atol=2e-3)


def other_file(path: Path, *, unknown: bool = False, dtype: torch.dtype = torch.float16, algorithm: str = "lora") -> Path:
    """A second LoRA: with an unknown key, another number type, or LoHa layers."""
    tensors = lora_tensors(small_layers(), seed=5, dtype=dtype)
    if algorithm == "loha":
        shapes = {name: (out, into) for name, (out, into, conv) in small_layers().items() if not conv}
        tensors = {}
        for name, (out, into) in shapes.items():
            for suffix, shape in (("w1_a", (out, 8)), ("w1_b", (8, into)), ("w2_a", (out, 8)), ("w2_b", (8, into))):
                tensors[f"{kohya_unet_key('sd1', name)}.hada_{suffix}"] = (torch.randn(shape) * 0.1).to(dtype)
    if unknown:
        tensors["lora_unet_weird_layer.lora_up.weight"] = torch.ones(2, 2)
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("strength", ["", ":0.7"])
def test_export_reports_error_of_merge_with_reduced_rank(
    style: Path, tmp_path: Path, strength: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    file, out = other_file(tmp_path / "loha.safetensors", algorithm="loha"), tmp_path / "out.safetensors"
    merging = [] if strength else ["--merge", f"{style}:0.5"]
    assert main(["export", f"{file}{strength}", str(out), "--rank", "8", "--dtype", "fp32", *merging]) == 0
    parts = [(read_lora(file), 0.7)] if strength else [(read_lora(file), 1.0), (read_lora(style), 0.5)]
    lost = total = 0.0
    for module in read_lora(out):
        exact = sum(m.delta().flatten(1) * s for weights, s in parts for m in weights if m.name == module.name)
        lost, total = lost + float((module.delta().flatten(1) - exact).norm()) ** 2, total + float(torch.as_tensor(exact).norm()) ** 2
    assert (lost / total) ** 0.5 > 0.2
    reported = re.search(r"relative error of the weight change ([\d.]+)%", capsys.readouterr().out)
    assert reported and float(reported.group(1)) / 100 == pytest.approx((lost / total) ** 0.5, rel=1e-2)


def test_export_warns_about_unused_keys(style: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd, out = other_file(tmp_path / "odd.safetensors", unknown=True), str(tmp_path / "out.safetensors")
    for first, second in ((odd, style), (style, odd)):
        assert main(["export", str(first), out, "--merge", f"{second}:0.5", "--overwrite"]) == 0
        reason = "1 keys are malformed or belong to another model, and are not used"
        warned = f"warning: odd.safetensors: {reason}: lora_unet_weird_layer.lora_up.weight"
        assert capsys.readouterr().out.count(warned) == 1
    assert main(["export", f"{odd}:0.5", out, "--overwrite"]) == 0
    assert "warning: 1 keys are malformed" in capsys.readouterr().out


def test_export_merges_8_bit_weights_as_fp16(style: Path, tmp_path: Path) -> None:
    eight, out = other_file(tmp_path / "eight.safetensors", dtype=torch.float8_e4m3fn), tmp_path / "out.safetensors"
    assert main(["export", str(eight), str(out), "--merge", f"{style}:0.5"]) == 0
    merged = read_lora(out)
    assert merged.dtype == torch.float16
    for module, a, b in zip(merged, read_lora(eight), read_lora(style), strict=True):
        exact = a.delta() + 0.5 * b.delta()
        assert float((module.delta() - exact).norm() / exact.norm()) < 1e-3


def test_export_overwrites_only_with_option(style: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = style.read_bytes()
    assert main(["export", str(style), str(style), "--title", "x"]) == 1
    assert "--overwrite" in capsys.readouterr().err and style.read_bytes() == before
    assert main(["export", str(style), str(tmp_path / "out.pt")]) == 1
    assert main(["export", str(style), str(tmp_path / "out.safetensors"), "--metadata", "nonsense"]) == 1
    assert "KEY=VALUE" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["a file/out.safetensors", f"{'n' * 300}.safetensors", "/proc/out.safetensors"])
def test_unwritable_output_path_is_named(style: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str) -> None:
    if place.startswith("/proc") and (os.name == "nt" or not Path("/proc").is_dir()):
        pytest.skip("NOT CHECKED: there is no file system that refuses files")
    (tmp_path / "a file").write_bytes(b"kept")
    assert main(["export", str(style), str(tmp_path / place)]) == 1
    printed = capsys.readouterr().err
    named = tmp_path / place
    assert printed.startswith(f"error: {named.parent if 'a file' in place else named}: ") and "hint: Check the path" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"a file", style.name} and (tmp_path / "a file").read_bytes() == b"kept"


@pytest.mark.parametrize(
    ("text", "path", "strength"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.5", "a.safetensors", 0.5),
        ("a.safetensors:-1", "a.safetensors", -1.0),
        ("C:\\loras\\a.safetensors", "C:\\loras\\a.safetensors", 1.0),
        ("C:\\loras\\a.safetensors:0.8", "C:\\loras\\a.safetensors", 0.8),
    ],
)
def test_strength_after_a_colon(text: str, path: str, strength: float) -> None:
    assert parse_strength(text) == (Path(path), strength)


def test_export_into_a_checkpoint(style: Path, tmp_path: Path, shallow_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tiny checkpoint has SD 1.x' layers with small widths: a LoRA with those widths is merged, one with full widths is refused."""
    out = tmp_path / "out.safetensors"
    assert main(["export", str(style), str(out), "--into-checkpoint", str(shallow_checkpoint)]) == 1
    assert "different sizes" in capsys.readouterr().err
    assert main(["export", str(style), str(out), "--into-checkpoint", str(shallow_checkpoint), "--rank", "2", "--title", "x"]) == 1
    assert "--rank, --title" in capsys.readouterr().err and not out.exists()
    weights = load_file(shallow_checkpoint)
    layers = [key for key in weights if key.startswith("model.diffusion_model.") and ".attn" in key and key.endswith("weight")]
    torch.manual_seed(0)
    small = {}
    for key in layers:
        name, (outputs, inputs) = key.removeprefix("model.").removesuffix(".weight"), weights[key].shape
        small[f"{name}.lora_up.weight"], small[f"{name}.lora_down.weight"] = torch.randn(outputs, 2), torch.randn(2, inputs)
    small["lora_unet_weird_layer.lora_up.weight"] = torch.ones(2, 2)
    save_file(small, tmp_path / "small.safetensors", {"ss_base_model_version": "sd_v1"})
    capsys.readouterr()
    assert main(["export", f"{tmp_path / 'small.safetensors'}:0.5", str(out), "--into-checkpoint", str(shallow_checkpoint)]) == 0
    assert "warning: 1 keys are malformed or belong to another model" in capsys.readouterr().out
    merged = load_file(out)
    for key, before in weights.items():
        name = key.removeprefix("model.").removesuffix(".weight")
        if key in layers:
            product = small[f"{name}.lora_up.weight"] @ small[f"{name}.lora_down.weight"]
            assert torch.equal(merged[key], (before.float() + 0.5 * product).half())
        else:
            assert torch.equal(merged[key], before)


@pytest.mark.parametrize("half", ["\ud800", "a title \udfff"])
def test_lone_surrogate_in_option_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], half: str) -> None:
    save_file(lora_tensors(small_layers()), tmp_path / "in.safetensors")
    for option in ("--title", "--trigger", "--description"):
        assert main(["export", str(tmp_path / "in.safetensors"), str(tmp_path / "out.safetensors"), option, half]) == 1
        assert "half a character, U+D" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.safetensors"]


def test_lone_surrogate_in_metadata_is_a_damaged_header(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = raw_safetensors(tmp_path / "x.safetensors", b'{"__metadata__":{"modelspec.title":"\\ud800"}}')
    assert main(["info", str(path)]) == 1
    assert "header is not JSON" in capsys.readouterr().err
