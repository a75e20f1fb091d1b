"""Files of ComfyUI's own Train LoRA and Extract and Save LoRA, which also change biases and normalisations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.lorafile.helpers import same_modules
from trainer.cli import main
from trainer.core.errors import UserError
from trainer.lorafile import card, convert, inspect_lora, merge, merge_into_checkpoint, read_lora, reduce_rank, write_lora

UNET, TEXT = "model.diffusion_model.", "cond_stage_model.transformer.text_model."
RANK = 2


def names(checkpoint: Path) -> dict[str, str]:
    """Names in ComfyUI's Extract and Save LoRA for every weight and bias, by the checkpoint's key."""
    found = {}
    for key in load_file(checkpoint):
        if key.startswith(UNET):
            found[key] = f"diffusion_model.{key.removeprefix(UNET)}"
        elif key.startswith(TEXT) and not key.endswith("position_ids"):
            found[key] = f"text_encoders.clip_l.transformer.text_model.{key.removeprefix(TEXT)}"
    return found


@pytest.fixture(scope="module")
def extracted(shallow_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file as that node writes it (``extract_lora``, ``calc_lora_model``) for two models whose tensors all differ, and the difference of
    each tensor of the checkpoint."""
    base, tensors, changes = load_file(shallow_checkpoint), {}, {}
    draw = torch.Generator().manual_seed(0)
    for key, name in names(shallow_checkpoint).items():
        shape, layer = base[key].shape, name.rpartition(".")[0]
        if key.endswith(".bias"):
            tensors[f"{layer}.diff_b"] = changes[key] = torch.randn(shape, generator=draw) * 0.01
        elif len(shape) == 1:
            tensors[f"{layer}.diff"] = changes[key] = torch.randn(shape, generator=draw) * 0.01
        else:
            tail = (1, 1) if len(shape) == 4 else ()
            up, down = torch.randn(shape[0], RANK, *tail, generator=draw) * 0.1, torch.randn(RANK, *shape[1:], generator=draw) * 0.1
            tensors |= {f"{layer}.lora_up.weight": up, f"{layer}.lora_down.weight": down}
            changes[key] = (up.flatten(1) @ down.flatten(1)).reshape(shape)
    path = tmp_path_factory.mktemp("extracted") / "extracted.safetensors"
    save_file(tensors, path, {"ss_base_model_version": "sd_v1"})
    return path, changes


Extracted = tuple[Path, dict[str, torch.Tensor]]


def test_info_reports_bias_changes(extracted: Extracted, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = extracted
    info = inspect_lora(path)
    assert info.usable and not info.problems and not info.unknown_keys, (info.problems, info.unknown_keys[:3])
    assert info.rank == RANK and info.targets["unet"] > 100 and info.targets["te1"] > 10
    assert any("change their biases" in note for note in info.notes)
    assert card(path).problem == ""
    assert main(["info", str(path)]) == 0
    assert "change their biases" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["kohya", "comfyui"])
def test_bias_changes_survive_conversion_and_back(extracted: Extracted, tmp_path: Path, form: str) -> None:
    weights = read_lora(extracted[0])
    write_lora(tmp_path / "x.safetensors", convert(weights, form))
    again = read_lora(tmp_path / "x.safetensors")
    assert again.unknown_keys == () and again.problems == ()
    assert {m.name: set(m.tensors) for m in again} == {m.name: set(m.tensors) for m in weights}
    if form == "comfyui":
        assert same_modules(weights.modules, again.modules)


@pytest.mark.parametrize("form", ["diffusers", "peft"])
def test_formats_for_plain_lora_refuse_bias_changes(extracted: Extracted, form: str) -> None:
    with pytest.raises(UserError, match=r"changes its bias|holds only plain LoRA"):
        convert(read_lora(extracted[0]), form)


def merged_differences(checkpoint: Path, target: Path, changes: dict[str, torch.Tensor], strength: float) -> dict[str, float]:
    before, after = load_file(checkpoint), load_file(target)
    assert {key for key in before if not torch.equal(before[key], after[key])} == set(changes)
    return {key: float((after[key].float() - before[key].float() - strength * changes[key]).abs().max()) for key in changes}


def test_merge_into_checkpoint_changes_biases_and_norms(extracted: Extracted, shallow_checkpoint: Path, tmp_path: Path) -> None:
    path, changes = extracted
    merge_into_checkpoint(shallow_checkpoint, [(read_lora(path), 0.5)], tmp_path / "merged.safetensors")
    assert max(merged_differences(shallow_checkpoint, tmp_path / "merged.safetensors", changes, 0.5).values()) < 2e-3


def test_merge_adds_bias_changes_and_rank_reduction_keeps_them(extracted: Extracted) -> None:
    path, _ = extracted
    weights = read_lora(path)
    doubled, _ = merge([(weights, 1.5), (weights, 0.5)])
    reduced, report = reduce_rank(doubled, RANK)
    assert report.kept > 0 and "are kept" in str(report)
    originals = {(module.component, module.name): module for module in weights}
    for each in (doubled, reduced):
        assert len(each.modules) == len(weights.modules)
        for module in each:
            original = originals[module.component, module.name]
            torch.testing.assert_close(module.delta(), 2 * original.delta(), rtol=1e-4, atol=1e-4)
            if "diff_b" in original.tensors:
                torch.testing.assert_close(module.tensors["diff_b"].float(), 2 * original.tensors["diff_b"].float(), rtol=1e-3, atol=1e-4)


def test_training_cannot_start_from_bias_changes(extracted: Extracted) -> None:
    from trainer.adapters.start_from import require_lora

    with pytest.raises(UserError, match="changes biases or normalisations") as caught:
        require_lora(extracted[0])
    assert "--into-checkpoint" in caught.value.hint


PAIR = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
NORM = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_norm1"


@pytest.mark.parametrize(
    ("beside", "algorithm"),
    [
        ({f"{PAIR}.reshape_weight": torch.tensor([640, 768])}, "lora"),
        ({f"{NORM}.set_weight": torch.ones(320)}, "lora+set"),
        ({f"{NORM}.w_norm": torch.ones(320), f"{NORM}.b_norm": torch.ones(320)}, "lora+norm"),
        ({f"{NORM}.b_norm": torch.ones(320)}, "lora"),
        ({f"{PAIR}.diff_b": torch.ones(320)}, "lora"),
    ],
    ids=["reshape_weight", "set_weight", "norm", "bias of a norm alone", "bias beside LoRA"],
)
def test_every_tensor_name_of_comfyui_is_read_and_converted(tmp_path: Path, beside: dict[str, torch.Tensor], algorithm: str) -> None:
    outputs = 640 if any("reshape" in key for key in beside) else 320
    tensors = {f"{PAIR}.lora_up.weight": torch.ones(outputs, 2), f"{PAIR}.lora_down.weight": torch.ones(2, 768), **beside}
    save_file(tensors, tmp_path / "x.safetensors", {"ss_base_model_version": "sd_v1"})
    weights = read_lora(tmp_path / "x.safetensors")
    assert weights.unknown_keys == () and weights.algorithm == algorithm
    for form in ("kohya", "comfyui"):
        held = convert(weights, form).tensors
        assert {key.rpartition(".")[2] for key in beside} <= {key.rpartition(".")[2] for key in held}


@pytest.mark.parametrize("bias", [torch.ones(7), torch.ones(320, 1), torch.full((320,), float("nan"))], ids=["size", "shape", "nan"])
def test_invalid_bias_change_is_refused(tmp_path: Path, bias: torch.Tensor) -> None:
    tensors = {f"{PAIR}.lora_up.weight": torch.ones(320, 2), f"{PAIR}.lora_down.weight": torch.ones(2, 768), f"{PAIR}.diff_b": bias}
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"bias|diff_b|not finite"):
        read_lora(tmp_path / "x.safetensors")


def test_all_zero_bias_changes_are_refused(tmp_path: Path) -> None:
    save_file({f"{PAIR}.diff_b": torch.zeros(320)}, tmp_path / "x.safetensors", {"ss_base_model_version": "sd_v1"})
    with pytest.raises(UserError, match="zero"):
        read_lora(tmp_path / "x.safetensors")
    save_file({f"{PAIR}.diff_b": torch.ones(320)}, tmp_path / "x.safetensors", {"ss_base_model_version": "sd_v1"})
    assert read_lora(tmp_path / "x.safetensors").algorithm == "bias"
