"""Which files Anima is recognised in, which files belong to it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file

from random_checkpoints.anima import DENOISER, SIZES, TEXT_ENCODER, VAE, file_size, layouts
from trainer.core.errors import UserError
from trainer.families import family_of, is_base_model, open_checkpoint
from trainer.families.anima import libraries, tensor_layout
from trainer.families.anima.anima_family import FAMILY

Tensors = dict[str, torch.Tensor]
CPU = torch.device("cpu")


@pytest.fixture
def models(tiny_anima: Path, tmp_path: Path) -> Path:
    """A copy of the three files, as hard links that may be removed."""
    for name in (DENOISER, TEXT_ENCODER, VAE):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).hardlink_to(tiny_anima.parents[1] / name)
    return tmp_path


@pytest.fixture
def changed(models: Path) -> Callable[[Callable[[Tensors], Tensors]], Path]:
    """Replaces the transformer's file by one with changed tensors."""

    def change(function: Callable[[Tensors], Tensors]) -> Path:
        path = models / DENOISER
        tensors = function(unmapped(path))
        path.unlink()
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        return path

    return change


def unmapped(path: Path) -> Tensors:
    """The tensors of a file that is replaced afterwards, which Windows refuses while it is mapped into memory."""
    return load(path.read_bytes())


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The transformer's weights as the trainer loads them."""
    return FAMILY.load_denoiser(open_checkpoint(str(path)), torch.float32).state_dict()


def refused(path: Path, **names: Any) -> str:
    """The message and the hint with which the model is refused."""
    with pytest.raises(UserError) as caught:
        family_of(open_checkpoint(str(path), **names))
    return f"{caught.value.message} {caught.value.hint}"


def test_published_files_have_the_sizes_of_their_layout() -> None:
    sizes = {name: file_size(*content) for name, content in layouts(SIZES["full"]).items()}
    assert sizes == {DENOISER: 4_182_218_328, TEXT_ENCODER: 1_192_135_096, VAE: 253_806_246}
    assert [len(content[0]) for content in layouts(SIZES["full"]).values()] == [685, 310, 194]


def test_full_size_has_the_published_numbers_of_parameters_and_280_targets() -> None:
    shapes = layouts(SIZES["full"])[DENOISER][0]
    with torch.device("meta"):
        from trainer.families.anima.denoiser import ImageCosmosTransformer

        denoiser = ImageCosmosTransformer(**tensor_layout.denoiser_config(shapes))
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == 1_956_405_248
    assert len(FAMILY.denoiser_targets(denoiser, "all-linear")) == 280
    assert len(FAMILY.denoiser_targets(denoiser, "attention")) == 224
    assert len(FAMILY.denoiser_targets(denoiser, "attention", ["modulation"])) == 224 + 168
    # all linear layers but those that embed patches and noise levels
    assert len(FAMILY.denoiser_targets(denoiser, "all-linear", ["modulation", "final_layer"])) == 454 - 3


def test_text_encoder_and_vae_are_found_in_the_folders_beside_the_model(models: Path) -> None:
    checkpoint = open_checkpoint(str(models / DENOISER))
    assert family_of(checkpoint) is FAMILY
    assert checkpoint.text_encoder is not None and checkpoint.text_encoder.path == models / TEXT_ENCODER
    assert checkpoint.vae is not None and checkpoint.vae.path == models / VAE


def test_files_named_in_the_settings_win_over_those_beside_the_model(models: Path, tmp_path: Path) -> None:
    named = {part: tmp_path / f"my {part}.safetensors" for part in ("vae", "text_encoder")}
    named["vae"].hardlink_to(models / VAE)
    named["text_encoder"].hardlink_to(models / TEXT_ENCODER)
    checkpoint = open_checkpoint(str(models / DENOISER), str(named["vae"]), str(named["text_encoder"]))
    assert checkpoint.vae is not None and checkpoint.vae.path == named["vae"]
    assert checkpoint.text_encoder is not None and checkpoint.text_encoder.path == named["text_encoder"]


def test_candidates_win_over_files_beside_the_model_and_damaged_ones_are_passed_over(models: Path, tmp_path: Path) -> None:
    good, damaged = tmp_path / "elsewhere.safetensors", tmp_path / "qwen_image damaged.safetensors"
    good.hardlink_to(models / VAE)
    damaged.write_bytes(b"nothing")
    found = open_checkpoint(str(models / DENOISER), candidates={"vae": [damaged, models / TEXT_ENCODER, good]})
    assert found.vae is not None and found.vae.path == good


def test_every_part_is_in_the_identity_of_the_model(models: Path) -> None:
    whole = open_checkpoint(str(models / DENOISER)).identity()
    for name in (TEXT_ENCODER, VAE):
        other = unmapped(models / name)
        first = next(iter(other))
        (models / name).unlink()
        save_file({**other, first: other[first] + 1}, models / name)
        changed = open_checkpoint(str(models / DENOISER)).identity()
        assert changed != whole
        whole = changed


@pytest.mark.parametrize(("part", "words"), [(TEXT_ENCODER, "qwen_3_06b_base.safetensors"), (VAE, "qwen_image_vae.safetensors")])
def test_a_model_without_text_encoder_or_vae_is_refused_with_the_file_to_get(models: Path, part: str, words: str) -> None:
    (models / part).unlink()
    assert words in refused(models / DENOISER)


def test_a_wrong_file_in_a_setting_is_refused(models: Path) -> None:
    assert "is not the Qwen3 0.6B text encoder" in refused(models / DENOISER, text_encoder=str(models / VAE))
    assert "was not found" in refused(models / DENOISER, vae=str(models / "none.safetensors"))


def test_stable_diffusion_refuses_a_text_encoder_file(shallow_checkpoint: Path, models: Path) -> None:
    assert "base.text_encoder" in refused(shallow_checkpoint, text_encoder=str(models / TEXT_ENCODER))


def test_a_transformer_without_the_text_adapter_is_refused_by_name(changed: Callable[..., Path]) -> None:
    path = changed(lambda tensors: {name: tensor for name, tensor in tensors.items() if "llm_adapter" not in name})
    assert "Cosmos-Predict2" in refused(path)
    assert not is_base_model(path)


def test_old_diffusers_is_refused_with_the_version_that_is_needed(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "version", lambda package: "0.38.0")
    assert "diffusers 0.39 or newer; 0.38.0 is installed" in refused(models / DENOISER)


@pytest.mark.parametrize("prefix", ["", "model.", "model.diffusion_model."])
def test_every_prefix_that_comfyui_reads_gives_the_same_weights(models: Path, changed: Callable[..., Path], prefix: str) -> None:
    before = weights(models / DENOISER)
    path = changed(lambda tensors: {prefix + name.removeprefix("net."): tensor for name, tensor in tensors.items()})
    after = weights(path)
    assert is_base_model(path)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_file_with_all_models_needs_no_other(models: Path, tmp_path: Path) -> None:
    before = open_checkpoint(str(models / DENOISER))
    tensors = {name.replace("net.", "model.diffusion_model.", 1): tensor for name, tensor in unmapped(models / DENOISER).items()}
    text = unmapped(models / TEXT_ENCODER)
    tensors |= {f"cond_stage_model.qwen3_06b.transformer.{name}": tensor for name, tensor in text.items()}
    tensors |= {f"first_stage_model.{name}": tensor for name, tensor in unmapped(models / VAE).items()}
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "whole.safetensors"
    save_file(tensors, path)
    whole = open_checkpoint(str(path))
    assert family_of(whole) is FAMILY and whole.vae is None and whole.text_encoder is None
    settings = FAMILY.text_settings(75, 0)
    rows = [FAMILY.load_text_encoder(each, torch.float32, CPU, settings).encode(["a cat"])[0]["embeds"] for each in (before, whole)]
    assert torch.equal(*rows)
    first, second = (FAMILY.load_vae(each, torch.float32).state_dict() for each in (before, whole))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_inserted_blocks_are_counted_and_positions_are_left_out(changed: Callable[..., Path]) -> None:
    def deeper(tensors: Tensors) -> Tensors:
        copies = {name.replace("blocks.1.", "blocks.2.", 1): tensor.clone() for name, tensor in tensors.items() if "net.blocks.1." in name}
        return {**tensors, **copies, "net.pos_embedder.seq": torch.arange(256.0)}

    denoiser: Any = FAMILY.load_denoiser(open_checkpoint(str(changed(deeper))), torch.float32)
    assert len(denoiser.transformer_blocks) == 3


def test_a_missing_block_is_refused(changed: Callable[..., Path]) -> None:
    path = changed(lambda tensors: {name.replace("net.blocks.1.", "net.blocks.2."): tensor for name, tensor in tensors.items()})
    assert "incomplete" in refused(path)


@pytest.mark.parametrize("scaled", [False, True])
def test_fp8_weights_are_read_with_their_scales(models: Path, changed: Callable[..., Path], scaled: bool) -> None:
    before = weights(models / DENOISER)

    def quantised(tensors: Tensors) -> Tensors:
        result = dict(tensors)
        for name, tensor in tensors.items():
            if ".blocks." in f".{name}" and name.endswith("_proj.weight"):
                scale = tensor.float().abs().max() / 448 if scaled else torch.tensor(1.0)
                result[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
                if scaled:
                    result[f"{name.removesuffix('weight')}scale_weight"] = scale.reshape(1)
        return result

    after = weights(changed(quantised))
    key = "transformer_blocks.1.attn2.to_v.weight"
    apart = (before[key] - after[key]).abs().max() / before[key].abs().max()
    assert 0 < apart < 2**-4  # half a step of three mantissa bits
    assert torch.equal(before["proj_out.weight"], after["proj_out.weight"])
