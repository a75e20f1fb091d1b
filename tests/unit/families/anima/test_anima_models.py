"""Anima's transformer, text path and VAE, compared with diffusers' own calls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.transformers import transformer_cosmos

from random_checkpoints.anima import make_empty_anima
from trainer.core.errors import UserError
from trainer.families import BaseCheckpoint, LatentSpace, open_checkpoint
from trainer.families.anima.anima_family import FAMILY
from trainer.families.anima.text import AnimaText, padded
from trainer.families.anima.tokenizers import qwen_tokens, t5_tokens

CPU = torch.device("cpu")
CAPTION = "1girl, hatsune miku (vocaloid), 青い髪, ~♥, score_7"


@pytest.fixture(scope="module")
def checkpoint(tiny_anima: Path) -> BaseCheckpoint:
    """The tiny model with its parts."""
    return open_checkpoint(str(tiny_anima))


@pytest.fixture(scope="module")
def text(checkpoint: BaseCheckpoint) -> AnimaText:
    """Its text path."""
    return FAMILY.load_text_encoder(checkpoint, torch.float32, CPU, FAMILY.text_settings(75, 0))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Gaussian numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ids as ComfyUI 0.33 and kohya's sd-scripts give them
@pytest.mark.parametrize(
    ("caption", "qwen", "t5"),
    [
        ("", [], []),
        ("a cat", [64, 8251], [3, 9, 1712]),
        ("miku (vocaloid)", [76, 38242, 320, 85, 3683, 588, 8], [1337, 2729, 41, 6117, 9, 20253, 61]),
    ],
)
def test_captions_are_tokenised_literally(caption: str, qwen: list[int], t5: list[int]) -> None:
    assert qwen_tokens(caption) == qwen
    assert t5_tokens(caption) == t5


def test_characters_that_t5_lacks_are_read_by_qwen() -> None:
    assert 2 in t5_tokens("青い髪 ~")
    assert len(set(qwen_tokens("青い髪 ~"))) > 3


def test_the_conditioning_is_that_of_the_models_called_one_after_the_other(text: AnimaText) -> None:
    qwen, t5 = torch.tensor([qwen_tokens(CAPTION)]), torch.tensor([[*t5_tokens(CAPTION), 1]])
    with torch.no_grad():
        states = text.qwen(input_ids=qwen, attention_mask=torch.ones_like(qwen)).last_hidden_state
        expected = text.adapter(states, t5)[0]
    row = text.encode([CAPTION])[0]["embeds"]
    assert row.shape == (t5.shape[1], 64)
    torch.testing.assert_close(row, expected, rtol=1e-5, atol=1e-6)


def test_padding_and_masks_as_in_other_trainers_give_the_same_conditioning(text: AnimaText) -> None:
    rows = text.encode(["a cat", CAPTION])
    qwen = torch.full((1, 512), 151_643)
    t5 = torch.zeros(1, 512, dtype=torch.int64)
    first, second = qwen_tokens("a cat"), [*t5_tokens("a cat"), 1]
    qwen[0, : len(first)], t5[0, : len(second)] = torch.tensor(first), torch.tensor(second)
    masks = [torch.arange(512)[None] < len(tokens) for tokens in (first, second)]
    with torch.no_grad():
        states = text.qwen(input_ids=qwen, attention_mask=masks[0].long()).last_hidden_state * masks[0][..., None]
        expected = text.adapter(states, t5, target_attention_mask=masks[1], source_attention_mask=masks[0])
    batch = padded([row["embeds"] for row in rows], CPU, torch.float32)
    assert batch.shape == (2, 512, 64)
    torch.testing.assert_close(batch[0], expected[0], rtol=1e-4, atol=1e-5)


def test_the_empty_prompt_is_that_of_comfyui_or_of_kohya(text: AnimaText, checkpoint: BaseCheckpoint) -> None:
    kohya = FAMILY.load_text_encoder(checkpoint, torch.float32, CPU, FAMILY.text_settings(75, 0, "kohya"))
    end = torch.tensor([[1]])
    with torch.no_grad():
        state = text.qwen(input_ids=torch.tensor([[151_643]])).last_hidden_state
        masked = text.adapter(torch.zeros_like(state), end, source_attention_mask=torch.ones(1, 1))[0]
        unmasked = text.adapter(state, end)[0]
    torch.testing.assert_close(text.encode([""])[0]["embeds"], unmasked)
    torch.testing.assert_close(kohya.encode([""])[0]["embeds"], masked)
    assert (unmasked - masked).abs().max() > 0.01
    torch.testing.assert_close(kohya.encode(["a cat"])[0]["embeds"], text.encode(["a cat"])[0]["embeds"])


def test_long_captions_are_cut_at_512_tokens_and_counted_whole(text: AnimaText) -> None:
    caption = "cat, " * 400
    assert text.encode([caption])[0]["embeds"].shape == (512, 64)
    assert text.tokenize([caption])[0]["t5"][-1] == 1
    assert text.count_tokens(caption) > 800


def test_weights_of_a_prompt_scale_the_rows_of_its_tokens(text: AnimaText) -> None:
    plain = text.apply_weights([("a ", 1.0), ("cat", 1.0)], {}, {})["embeds"]
    weighted = text.apply_weights([("a ", 1.0), ("cat", 1.5)], {}, {})["embeds"]
    before, inside = len(t5_tokens("a ")), len(t5_tokens("cat"))
    torch.testing.assert_close(weighted[before : before + inside], 1.5 * plain[before : before + inside])
    assert torch.equal(weighted[:before], plain[:before])
    assert torch.equal(weighted[-1], plain[-1])  # the end token


def test_the_rows_of_zeros_after_a_prompt_count(checkpoint: BaseCheckpoint) -> None:
    denoiser: Any = FAMILY.load_denoiser(checkpoint, torch.float32)
    latents, context = random(1, 16, 4, 4), random(1, 9, 64, seed=1)
    with torch.no_grad():
        whole = denoiser(latents, torch.tensor([0.5]), torch.nn.functional.pad(context, (0, 0, 0, 503)))[0]
        short = denoiser(latents, torch.tensor([0.5]), context)[0]
    assert (whole - short).abs().max() > 0.05 * whole.abs().max()


def test_the_transformer_is_diffusers_own_on_one_frame(checkpoint: BaseCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    resize = SimpleNamespace(resize=lambda mask, size, interpolation: torch.nn.functional.interpolate(mask, size=size))
    stand_in = SimpleNamespace(functional=resize, InterpolationMode=SimpleNamespace(NEAREST=None))  # for torchvision
    monkeypatch.setattr(transformer_cosmos, "transforms", stand_in, raising=False)
    denoiser: Any = FAMILY.load_denoiser(checkpoint, torch.float32)
    latents, timesteps, context = random(2, 16, 8, 12), torch.tensor([0.2, 0.9]), random(2, 512, 64, seed=1)
    with torch.no_grad():
        ours = denoiser(latents, timesteps, context)[0]
        theirs = transformer_cosmos.CosmosTransformer3DModel.forward(
            denoiser, latents.unsqueeze(2), timesteps, context, padding_mask=torch.zeros(1, 1, 64, 96), return_dict=False
        )[0]
    assert torch.equal(ours, theirs.squeeze(2))


def test_latents_are_normalised_by_channel_and_decoded_back(checkpoint: BaseCheckpoint) -> None:
    vae: Any = FAMILY.load_vae(checkpoint, torch.float32)
    pixels = random(2, 3, 32, 48).clamp(-1, 1)
    mean, std = (torch.tensor(vae.config[name]).view(-1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    with torch.no_grad():
        latents, deviation = FAMILY.encode_images(vae, pixels)
        video = vae.encode(pixels.unsqueeze(2)).latent_dist.mode()
        decoded = FAMILY.decode_latents(vae, latents)
        expected = vae.decode(video).sample.squeeze(2)
    assert latents.shape == (2, *FAMILY.latents.shape(48, 32)) and not deviation.any()
    torch.testing.assert_close(latents, ((video - mean) / std).squeeze(2))
    torch.testing.assert_close(decoded, expected, rtol=1e-4, atol=1e-5)


def test_settings_without_a_meaning_are_refused(checkpoint: BaseCheckpoint) -> None:
    assert LatentSpace(16, 8, 1.0, multiple=16, largest=2048) == FAMILY.latents
    with pytest.raises(UserError, match="clip_skip"):
        FAMILY.text_settings(75, 2)
    with pytest.raises(UserError, match="no convolutions"):
        FAMILY.denoiser_targets(FAMILY.empty_denoiser(checkpoint), "all-linear+conv")


def test_the_parts_of_the_text_encoder_make_the_whole_one_after_the_other(checkpoint: BaseCheckpoint, text: AnimaText) -> None:
    settings = FAMILY.text_settings(75, 0)
    front, back = (FAMILY.load_text_encoder(checkpoint, torch.float32, CPU, replace(settings, part=part)) for part in ("front", "back"))
    assert (set(text.modules), set(front.modules), set(back.modules)) == ({"te1", "adapter"}, {"te1"}, {"adapter"})
    prompts = ["a cat", CAPTION, ""]
    rows = front.encode(prompts)
    assert [len(row["states"]) for row in rows] == [2, len(qwen_tokens(CAPTION)), 1]  # nothing is padded; one token for the empty prompt
    assert [row["t5"].tolist() for row in rows] == [[*t5_tokens(prompt), 1] for prompt in prompts]
    for given, whole in zip(back.conditions(rows), text.encode(prompts), strict=True):
        assert torch.equal(given["embeds"], whole["embeds"])
    parts = [("a ", 1.0), ("cat", 1.5)]
    assert torch.equal(back.conditions([front.apply_weights(parts, {}, {})])[0]["embeds"], text.apply_weights(parts, {}, {})["embeds"])


def test_kohya_s_modules_of_the_text_encoder_are_targets(tmp_path: Path) -> None:
    encoder = FAMILY.empty_text_encoder(open_checkpoint(str(make_empty_anima(tmp_path))))
    counts = {
        targets: [len(FAMILY.text_targets(model, targets)) for model in encoder.modules.values()] for targets in ("all-linear", "attention")
    }
    assert counts == {"all-linear": [196, 60], "attention": [112, 48]}
