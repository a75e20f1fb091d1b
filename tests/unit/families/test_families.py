"""SD 2.x and SDXL: configurations, text encoders, conditioning and LoRA keys, compared with independent code."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from random_checkpoints.layout import FULL_SDXL, TINY_SD2, TINY_SDXL, tensors
from random_checkpoints.make_checkpoint import make_empty_checkpoint
from tests.unit.families.plain_models import below, full_config, open_clip
from tests.unit.lorafile.helpers import key_table
from tests.unit.training_helpers import configuration, make_dataset, train_here
from trainer.core.errors import UserError
from trainer.dataset import PrepareSettings, open_dataset, prepare_dataset
from trainer.families import FAMILIES, Framing, family_named, family_of, open_checkpoint
from trainer.families.stable_diffusion import ldm_configs
from trainer.plan.planning import make_plan
from trainer.training.micro_batch import framing
from trainer.training.monitoring.latent_sampling import sample_latents

CPU = torch.device("cpu")
PROMPTS = ["", "a photo of a cat", "myAnimeStyleToken anime_face girl, high quality"]
# unet/config.json of stable-diffusion-xl-base-1.0 and of stable-diffusion-2-1, less the entries that name files and versions
COMMON: dict[str, Any] = {
    "act_fn": "silu", "center_input_sample": False, "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4,
    "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4,
    "use_linear_projection": True,
}  # fmt: skip
SDXL_UNET = {
    **COMMON, "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048, "sample_size": 128,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "projection_class_embeddings_input_dim": 2816, "transformer_layers_per_block": [1, 2, 10],
}  # fmt: skip


def test_sdxl_unet_config_matches_published_one() -> None:
    shapes = {tensor.name: tensor.shape for tensor in tensors(FULL_SDXL)}
    assert full_config(UNet2DConditionModel, ldm_configs.unet_config(shapes, heads=None)) == full_config(UNet2DConditionModel, SDXL_UNET)


def test_each_family_recognises_only_its_own_files(tiny_checkpoints: dict[str, Path]) -> None:
    for name, path in tiny_checkpoints.items():
        checkpoint = open_checkpoint(str(path))
        assert [family.name for family in FAMILIES if family.recognises(checkpoint)] == [name]


@pytest.mark.parametrize(("name", "modules", "attention", "with_convolutions"), [("sd2", 192, 128, 276), ("sdxl", 722, 560, 787)])
def test_denoiser_targets_match_kohya(
    tiny_checkpoints: dict[str, Path], name: str, modules: int, attention: int, with_convolutions: int
) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoints[name]))
    unet = family_named(name).empty_denoiser(checkpoint)
    counts = [len(family_named(name).denoiser_targets(unet, targets)) for targets in ("all-linear", "attention", "all-linear+conv")]
    assert counts == [modules, attention, with_convolutions]


@pytest.mark.parametrize("name", ["sd2", "sdxl"])
@pytest.mark.seconds
def test_unet_from_single_file_matches_diffusers(tiny_checkpoints: dict[str, Path], name: str, tmp_path: Path) -> None:
    size = {"sd2": TINY_SD2, "sdxl": TINY_SDXL}[name]
    config: dict[str, Any] = {"block_out_channels": size.unet, "cross_attention_dim": size.context, "use_linear_projection": True}
    config["attention_head_dim"] = [max(1, width // 64) for width in size.unet]
    if name == "sdxl":
        kept = ("addition_embed_type", "addition_time_embed_dim", "down_block_types", "up_block_types", "transformer_layers_per_block")
        config |= {key: SDXL_UNET[key] for key in kept} | {"projection_class_embeddings_input_dim": 6 * 256 + size.second_width}
    UNet2DConditionModel(**config).save_config(tmp_path / "unet")
    plain = UNet2DConditionModel.from_single_file(
        str(tiny_checkpoints[name]), config=str(tmp_path), subfolder="unet", torch_dtype=torch.float32, local_files_only=True
    )
    family, checkpoint = family_named(name), open_checkpoint(str(tiny_checkpoints[name]))
    ours = family.load_denoiser(checkpoint, torch.float32)
    draw = torch.Generator().manual_seed(0)
    arguments: dict[str, Any] = {"encoder_hidden_states": torch.randn(2, 77, size.context, generator=draw)}
    if name == "sdxl":
        pooled = torch.randn(2, size.second_width, generator=draw)
        arguments["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.tensor([[64.0, 80, 0, 8, 64, 64]] * 2)}
    latents = torch.randn(2, 4, 8, 8, generator=draw)
    with torch.no_grad():
        expected = plain.eval()(latents, torch.tensor([7, 801]), **arguments).sample
        given = ours(latents, torch.tensor([7, 801]), **arguments).sample
    # the weights are equal, but the alignment of memory may select another kernel, which rounds differently
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)
    theirs = dict(plain.named_parameters())
    assert all(torch.equal(value, theirs[key]) for key, value in ours.named_parameters())
    read = family.read_denoiser(checkpoint, torch.float32, channels_last=True)
    laid_out = dict(family.load_denoiser(checkpoint, torch.float32, read).named_parameters())
    assert laid_out.keys() == theirs.keys()
    for key, value in laid_out.items():
        assert torch.equal(value, theirs[key])
        assert value.is_contiguous(memory_format=torch.channels_last if value.dim() == 4 else torch.contiguous_format), key


def token_ids(tokenizer: Any, filler: int) -> torch.Tensor:
    rows = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    return torch.tensor([row + [filler] * (77 - len(row)) for row in rows])


def test_sdxl_second_encoder_matches_plain_open_clip(tiny_checkpoints: dict[str, Path]) -> None:
    encoder: Any = family_named("sdxl").load_text_encoder(open_checkpoint(str(tiny_checkpoints["sdxl"])), torch.float32, CPU)
    weights = below(load_file(str(tiny_checkpoints["sdxl"])), "conditioner.embedders.1.model.")
    hidden, pooled = open_clip(weights, token_ids(encoder.first.tokenizer, 0), TINY_SDXL.second_layers)
    rows = encoder.encode(PROMPTS)
    torch.testing.assert_close(torch.stack([row["embeds"] for row in rows])[..., 64:], hidden, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.stack([row["pooled"] for row in rows]), pooled, rtol=1e-4, atol=1e-5)


def test_sd2_encoder_uses_normed_output_of_the_layer_before_the_last(tiny_checkpoints: dict[str, Path]) -> None:
    encoder: Any = family_named("sd2").load_text_encoder(open_checkpoint(str(tiny_checkpoints["sd2"])), torch.float32, CPU)
    weights = below(load_file(str(tiny_checkpoints["sd2"])), "cond_stage_model.model.")
    hidden, _ = open_clip(weights, token_ids(encoder.tokenizer, 0), TINY_SD2.text_layers)
    expected = F.layer_norm(hidden, (64,), weights["ln_final.weight"], weights["ln_final.bias"], 1e-5)
    given = torch.stack([row["embeds"] for row in encoder.encode(PROMPTS)])
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["sd2", "sdxl"])
@pytest.mark.seconds
def test_conditioning_and_latents_match_diffusers_pipeline(tiny_checkpoints: dict[str, Path], name: str) -> None:
    checkpoint, family = open_checkpoint(str(tiny_checkpoints[name])), family_named(name)
    pipeline = family.pipeline(checkpoint, dtype=torch.float32)
    assert isinstance(pipeline, StableDiffusionXLPipeline if name == "sdxl" else StableDiffusionPipeline)
    pipeline.set_progress_bar_config(disable=True)
    encoder = family.load_text_encoder(checkpoint, torch.float32, CPU)
    condition, negative = encoder.encode(["a cat", ""])
    encoded = pipeline.encode_prompt("a cat", device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=True, negative_prompt="")
    assert torch.allclose(encoded[0][0], condition["embeds"], atol=1e-5) and torch.allclose(encoded[1][0], negative["embeds"], atol=1e-5)
    if name == "sdxl":
        assert torch.allclose(encoded[2][0], condition["pooled"], atol=1e-5)
    options = {"width": 64, "height": 48, "generator": torch.Generator().manual_seed(3)}
    theirs = pipeline("a cat", negative_prompt="", num_inference_steps=3, guidance_scale=4.0, output_type="latent", **options).images
    more: dict[str, Any] = {
        "steps": 3,
        "guidance": 4.0,
        "generator": torch.Generator().manual_seed(3),
        "device": CPU,
        "dtype": torch.float32,
    }
    ours = sample_latents(pipeline.unet, family, condition, negative, width=64, height=48, **more)
    assert ours is not None
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.seconds
def test_sdxl_folder_encodes_like_its_single_file(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    family, single = family_named("sdxl"), open_checkpoint(str(tiny_checkpoints["sdxl"]))
    family.pipeline(single, dtype=torch.float32).save_pretrained(tmp_path / "folder")
    folder = open_checkpoint(str(tmp_path / "folder"))
    assert family_of(folder) is family
    first, second = (family.load_text_encoder(each, torch.float32, CPU).encode(PROMPTS) for each in (single, folder))
    for ours, theirs in zip(first, second, strict=True):
        assert all(torch.allclose(ours[key], theirs[key], atol=1e-5) for key in ("embeds", "pooled"))


def test_sdxl_time_ids_are_ordered_and_not_rounded(tmp_path: Path) -> None:
    framings = [Framing((1600, 1001), (1024, 768), (12, 34))]
    condition = {"embeds": torch.zeros(77, 8), "pooled": torch.zeros(4)}
    inputs = family_named("sdxl").denoiser_inputs([condition], framings, CPU, torch.bfloat16)
    assert inputs["added_cond_kwargs"]["time_ids"].tolist() == [[1001, 1600, 12, 34, 768, 1024]]
    folder = make_dataset(tmp_path, 1)
    assert framing(open_dataset(folder).items[0]) == Framing((64, 64), (64, 64), (0, 0))


def test_framing_of_flipped_image_mirrors_the_crop(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.effect_noise((101, 64), 80).convert("RGB").save(tmp_path / "in" / "a.png")
    item = prepare_dataset(tmp_path / "in", tmp_path / "out", PrepareSettings(trigger="x", resolution=64)).dataset.items[0]
    assert framing(item).crop_top_left == (0, 18)
    assert framing(item, flipped=True).crop_top_left == (0, 101 - 64 - 18)
    older = replace(item, crop_right=None)  # older manifests do not record it
    assert framing(older, flipped=True) == framing(older)


def trained_names(checkpoint: Path, tmp_path: Path) -> set[str]:
    """The layers in the exported file of a one-step run."""
    config = configuration(checkpoint, make_dataset(tmp_path, 2), tmp_path / "runs", {"training.max_steps": 1})
    trained = train_here(config)
    assert trained.status == 0
    return {key.split(".")[0] for key in load_file(str(trained.run.lora))}


@pytest.mark.seconds
def test_sd2_lora_keys_match_kohya(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    known = {key.split(".")[0] for key in key_table("sd15") if key.startswith("lora_unet_")}
    assert trained_names(tiny_checkpoints["sd2"], tmp_path) == known


@pytest.mark.seconds
def test_sdxl_lora_keys_use_the_checkpoint_names(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    layer = re.compile(r"model\.diffusion_model\.(.+\.(?:proj_in|proj_out|to_[qkv]|to_out\.0|ff\.net\.0\.proj|ff\.net\.2))\.weight")
    own = {match[1] for name in load_file(str(tiny_checkpoints["sdxl"])) if (match := layer.fullmatch(name))}
    written = trained_names(tiny_checkpoints["sdxl"], tmp_path)
    assert written == {"lora_unet_" + name.replace(".", "_") for name in own}
    assert len(written) == len({key.split(".")[0] for key in key_table("sdxl") if key.startswith("lora_unet_")})


@pytest.mark.seconds
def test_plan_of_full_size_sdxl_counts_parameters_like_kohya(tmp_path: Path) -> None:
    make_empty_checkpoint(tmp_path / "xl.safetensors", "full-sdxl")
    checkpoint, folder = open_checkpoint(str(tmp_path / "xl.safetensors")), make_dataset(tmp_path, 1, resolution=1024)
    plans = [
        make_plan(
            configuration(checkpoint.path, folder, tmp_path, {"network.rank": 16, "training.gradient_checkpointing": thrifty}),
            open_dataset(folder),
            family_of(checkpoint),
            checkpoint,
            CPU,
            "bf16",
        )
        for thrifty in (True, False)
    ]
    per_rank = 0
    for key, (_, shape) in key_table("sdxl").items():
        if key.startswith("lora_unet_") and not key.endswith(".alpha"):
            per_rank += shape[1] if key.endswith(".lora_down.weight") else shape[0]
    assert [plan.trainable_parameters for plan in plans] == [16 * per_rank] * 2
    assert plans[0].modules == 722
    # 2,567.5 million frozen parameters of two bytes; on a CPU with enough memory, packed for both directions; and activations
    assert all(5.13 < plan.memory["base"] < (10.4 if plan.prepacked else 5.2) for plan in plans)
    kept = [plan.memory_gb - plan.memory["base"] for plan in plans]
    assert 0 < kept[0] < 3.9 < kept[1] < 15


@pytest.mark.parametrize(
    ("name", "missing", "word"),
    [
        ("sdxl", "conditioner.embedders.1.model.transformer.resblocks.1.mlp.c_fc.bias", "text encoder"),
        ("sdxl", "conditioner.embedders.1.model.text_projection", "text encoder"),
        ("sd2", "cond_stage_model.model.ln_final.bias", "text encoder"),
    ],
)
def test_missing_text_encoder_tensor_is_refused(
    tiny_checkpoints: dict[str, Path], tmp_path: Path, name: str, missing: str, word: str
) -> None:
    weights = load_file(str(tiny_checkpoints[name]))
    del weights[missing]
    save_file(weights, tmp_path / "holed.safetensors")
    with pytest.raises(UserError, match=word):
        family_named(name).load_text_encoder(open_checkpoint(str(tmp_path / "holed.safetensors")), torch.float32, CPU)


def test_refiner_is_refused_by_name(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    weights = {name: tensor for name, tensor in load_file(str(tiny_checkpoints["sdxl"])).items() if "embedders.0." not in name}
    save_file(weights, tmp_path / "refiner.safetensors")
    with pytest.raises(UserError, match="refiner"):
        family_of(open_checkpoint(str(tmp_path / "refiner.safetensors")))
