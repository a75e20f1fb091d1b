"""Base checkpoints: every layout loads the same model, and other files are refused with a clear message."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors.torch import load_file, save_file

from random_checkpoints.layout import TINY
from tests.tools.hostile import Evil
from trainer.core.errors import UserError
from trainer.families import family_of, open_checkpoint
from trainer.families.sd1 import FAMILY

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def weights(tiny_checkpoint: Path) -> Tensors:
    """The tiny checkpoint's tensors."""
    return load_file(str(tiny_checkpoint))


def noise_prediction(unet: Any) -> torch.Tensor:
    """The UNet's output for fixed latents, timestep and context."""
    draw = torch.Generator().manual_seed(0)
    latents, context = torch.randn(2, 4, 8, 8, generator=draw), torch.randn(2, 77, TINY.text_width, generator=draw)
    with torch.no_grad():
        output: torch.Tensor = unet(latents, torch.tensor([7, 801]), context).sample
    return output


def by_hand(weights: Tensors, cls: Any, prefix: str, convert: Any, **config: Any) -> Any:
    """The model from a configuration in this test and diffusers' own conversion of names."""
    model = cls(**config)
    model.load_state_dict(convert({k: v.float() for k, v in weights.items() if k.startswith(prefix)}, model.config))
    return model.eval()


def test_a_single_file_loads_the_same_model_as_diffusers(tiny_checkpoint: Path, weights: Tensors) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint))
    unet = by_hand(
        weights,
        UNet2DConditionModel,
        "model.diffusion_model.",
        convert_ldm_unet_checkpoint,
        block_out_channels=TINY.unet,
        cross_attention_dim=TINY.text_width,
        attention_head_dim=8,
    )
    ours = FAMILY.load_denoiser(checkpoint, torch.float32)
    assert torch.equal(noise_prediction(ours), noise_prediction(unet))
    assert not any(parameter.requires_grad for parameter in ours.parameters())
    assert not ours.training


def test_the_vae_of_a_single_file_encodes_and_decodes_as_diffusers_does(tiny_checkpoint: Path, weights: Tensors) -> None:
    levels = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 2}
    vae = AutoencoderKL(block_out_channels=TINY.vae, latent_channels=4, **levels)
    converted = convert_ldm_vae_checkpoint({k: v.float() for k, v in weights.items() if k.startswith("first_stage_model.")}, vae.config)
    # the original's attention is made of 1x1 convolutions, diffusers' of linear layers
    own = vae.state_dict()
    vae.load_state_dict({key: value.reshape(own[key].shape) for key, value in converted.items()})
    ours: Any = FAMILY.load_vae(open_checkpoint(str(tiny_checkpoint)), torch.float32)
    picture = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        assert torch.equal(ours.encode(picture).latent_dist.mean, vae.eval().encode(picture).latent_dist.mean)
        latent = torch.randn(1, 4, 4, 5, generator=torch.Generator().manual_seed(2))
        assert torch.equal(ours.decode(latent).sample, vae.decode(latent).sample)
    assert ours.config.scaling_factor == 0.18215


@pytest.mark.seconds
def test_a_diffusers_folder_gives_the_same_outputs_as_the_file_it_came_from(tiny_checkpoint: Path, tmp_path: Path) -> None:
    single = open_checkpoint(str(tiny_checkpoint))
    FAMILY.pipeline(single, dtype=torch.float32).save_pretrained(tmp_path / "folder")
    folder = open_checkpoint(str(tmp_path / "folder"))
    assert family_of(folder) is FAMILY
    # not to the bit: kernels round differently for weights that are mapped from a file at another alignment
    from_file, from_folder = (noise_prediction(FAMILY.load_denoiser(each, torch.float32)) for each in (single, folder))
    assert torch.allclose(from_file, from_folder, atol=1e-5)
    prompts = ["a cat", "", "x " * 100]
    encoded = [FAMILY.load_text_encoder(each, torch.float32, torch.device("cpu")).encode(prompts) for each in (single, folder)]
    for ours, theirs in zip(*encoded, strict=True):
        assert torch.allclose(ours["embeds"], theirs["embeds"], atol=1e-5)


@pytest.mark.seconds
def test_the_identity_of_a_folder_depends_on_its_weights_and_not_on_its_images(tiny_checkpoint: Path, tmp_path: Path) -> None:
    FAMILY.pipeline(open_checkpoint(str(tiny_checkpoint)), dtype=torch.float16).save_pretrained(tmp_path / "m")
    first = open_checkpoint(str(tmp_path / "m")).identity()
    (tmp_path / "m" / "preview.png").write_bytes(b"a picture")
    assert open_checkpoint(str(tmp_path / "m")).identity() == first
    with (tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    assert open_checkpoint(str(tmp_path / "m")).identity() != first


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("nested", [True, False], ids=["state_dict", "flat"])
@pytest.mark.seconds
def test_a_ckpt_of_plain_weights_gives_the_same_model(
    tiny_checkpoint: Path, weights: Tensors, tmp_path: Path, zipped: bool, nested: bool
) -> None:
    path = tmp_path / "model.ckpt"
    data: dict[str, Any] = {"state_dict": weights, "epoch": 3, "global_step": 1000} if nested else dict(weights)
    torch.save(data, path, _use_new_zipfile_serialization=zipped)
    checkpoint = open_checkpoint(str(path))
    assert family_of(checkpoint) is FAMILY
    expected = noise_prediction(FAMILY.load_denoiser(open_checkpoint(str(tiny_checkpoint)), torch.float32))
    assert torch.equal(noise_prediction(FAMILY.load_denoiser(checkpoint, torch.float32)), expected)


class Foreign:
    """A harmless object of a class other than a tensor, as training frameworks leave in their files."""


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_ckpt_that_contains_code_is_refused_and_the_code_is_not_run(weights: Tensors, tmp_path: Path, zipped: bool) -> None:
    marker, path = tmp_path / "it-ran", tmp_path / "model.ckpt"
    torch.save({"state_dict": weights, "callbacks": Evil(marker)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="can run code") as caught:
        open_checkpoint(str(path))
    assert ".safetensors" in caught.value.hint
    assert not marker.exists()


def test_a_ckpt_with_a_foreign_class_is_refused(weights: Tensors, tmp_path: Path) -> None:
    torch.save({"state_dict": weights, "callbacks": Foreign()}, tmp_path / "model.ckpt")
    with pytest.raises(UserError) as caught:
        open_checkpoint(str(tmp_path / "model.ckpt"))
    assert caught.value.kind == "checkpoint"


def without(weights: Tensors, *prefixes: str) -> Tensors:
    return {name: tensor for name, tensor in weights.items() if not name.startswith(prefixes)}


def renamed(weights: Tensors, old: str, new: str) -> Tensors:
    return {name.replace(old, new): tensor for name, tensor in weights.items()}


def sd2(weights: Tensors) -> Tensors:
    """SD 2.x: linear projections and OpenCLIP's names."""
    flat = {name: t.flatten(1) if name.endswith((".proj_in.weight", ".proj_out.weight")) else t for name, t in weights.items()}
    return renamed(flat, "cond_stage_model.transformer.text_model.", "cond_stage_model.model.")


def sdxl(weights: Tensors) -> Tensors:
    """SDXL: two text encoders below ``conditioner`` and the size embedding."""
    names = renamed(weights, "cond_stage_model.", "conditioner.embedders.0.")
    markers = ("conditioner.embedders.1.model.ln_final.weight", "model.diffusion_model.label_emb.0.0.weight")
    return {**names, **{marker: torch.zeros(4, 4) for marker in markers}}


def inpainting(weights: Tensors) -> Tensors:
    """An inpainting UNet: nine input channels."""
    stem = "model.diffusion_model.input_blocks.0.0.weight"
    return {**weights, stem: torch.cat([weights[stem], weights[stem][:, :1].expand(-1, 5, -1, -1)], dim=1)}


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda w: {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.zeros(4, 64)}, "LoRA"),
        (lambda w: {"base_model.model.unet.mid_block.lora_A.weight": torch.zeros(4, 64)}, "LoRA"),
        (sdxl, "SDXL"),
        (sd2, "SD 2"),
        (inpainting, "inpainting"),
        (lambda w: without(w, "model.", "cond_stage_model."), "no UNet"),
        (lambda w: without(w, "cond_stage_model."), "no text encoder"),
        (lambda w: {"double_blocks.0.img_attn.qkv.weight": torch.zeros(4, 4)}, "Flux"),
        (lambda w: {"anything": torch.zeros(1)}, "no UNet"),
    ],
)
def test_a_file_of_another_kind_is_refused_and_its_kind_is_named(weights: Tensors, tmp_path: Path, make: Any, word: str) -> None:
    path = tmp_path / "other.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in make(weights).items()}, path)
    with pytest.raises(UserError, match=word) as caught:
        family_of(open_checkpoint(str(path)))
    assert caught.value.kind == "checkpoint"
    assert "other.safetensors" in caught.value.message
    assert "Stable Diffusion 1.x" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("model.diffusion_model.middle_block.1.proj_in.weight", "load_denoiser"),
        ("model.diffusion_model.output_blocks.3.0.in_layers.2.bias", "load_denoiser"),
        ("first_stage_model.decoder.conv_out.bias", "load_vae"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "load_text_encoder"),
    ],
)
def test_a_missing_tensor_is_an_error_and_never_random_weights(weights: Tensors, tmp_path: Path, name: str, load: str) -> None:
    save_file({key: tensor for key, tensor in weights.items() if key != name}, tmp_path / "holed.safetensors")
    checkpoint = open_checkpoint(str(tmp_path / "holed.safetensors"))
    arguments = (torch.device("cpu"),) if load == "load_text_encoder" else ()
    with pytest.raises(UserError) as caught:
        getattr(FAMILY, load)(checkpoint, torch.float32, *arguments)
    assert caught.value.kind == "checkpoint"
    assert "holed.safetensors" in caught.value.message


def test_a_damaged_checkpoint_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    whole = tiny_checkpoint.read_bytes()
    for name, content in (
        ("half", whole[: len(whole) // 2]),
        ("empty", b""),
        ("html", b"<!DOCTYPE html><html>404</html>"),
        ("huge-header", struct.pack("<Q", 1 << 60) + whole[8:]),
    ):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged") as caught:
            open_checkpoint(str(path))
        assert name in caught.value.message


@pytest.mark.parametrize("reference", ["", "  ", "nowhere.safetensors", "a\x00b", "../no/such/folder", "/nonexistent/x"])
def test_a_missing_checkpoint_is_refused(reference: str) -> None:
    with pytest.raises(UserError) as caught:
        open_checkpoint(reference)
    assert caught.value.kind == "checkpoint"
    assert caught.value.hint


def test_a_folder_or_file_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    for reference in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(UserError) as caught:
            open_checkpoint(str(reference))
        assert caught.value.kind == "checkpoint"


def test_a_hub_id_without_a_network_is_refused() -> None:
    with pytest.raises(UserError, match="downloading it failed") as caught:
        open_checkpoint("nobody-at-all/no-such-model")
    assert "internet" in caught.value.hint


def test_a_cached_digest_matches_the_file_and_notices_a_change(tmp_path: Path) -> None:
    import hashlib

    path, cache = tmp_path / "m.safetensors", tmp_path / "cache"
    save_file({"a": torch.zeros(3)}, path)
    assert open_checkpoint(str(path)).identity(cache) == hashlib.sha256(path.read_bytes()).hexdigest()
    save_file({"a": torch.ones(4)}, path)
    assert open_checkpoint(str(path)).identity(cache) == hashlib.sha256(path.read_bytes()).hexdigest()
    (cache / "checkpoint-hashes.json").write_text("[broken")
    assert open_checkpoint(str(path)).identity(cache) == hashlib.sha256(path.read_bytes()).hexdigest()
