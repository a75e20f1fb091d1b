"""Lumina 2's transformer, text encoder and VAE, compared with those of diffusers and transformers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from random_checkpoints.lumina2 import DENOISER, SIZES, TEXT_ENCODER, TOKENIZER, layout
from tests.tools.lumina2_in_diffusers import make_transformer
from trainer.core.errors import UserError
from trainer.families import BaseCheckpoint, LatentSpace, open_checkpoint
from trainer.families.lumina2 import tensor_layout
from trainer.families.lumina2.gemma import compute_layer_by_layer, load_gemma
from trainer.families.lumina2.lumina2_family import FAMILY
from trainer.families.lumina2.text import PROMPT_START, SYSTEM_PROMPT, GemmaText

CPU = torch.device("cpu")
CAPTION = "1girl, hatsune miku (vocaloid), 青い髪"


@pytest.fixture(scope="module")
def checkpoint(tiny_lumina2: Path) -> BaseCheckpoint:
    """The tiny model."""
    return open_checkpoint(str(tiny_lumina2))


@pytest.fixture(scope="module")
def text(checkpoint: BaseCheckpoint) -> GemmaText:
    """Its text encoder."""
    return FAMILY.load_text_encoder(checkpoint, torch.float32, CPU, FAMILY.text_settings(75, 0))


@pytest.fixture(scope="module")
def denoiser(checkpoint: BaseCheckpoint) -> Any:
    """Its transformer."""
    return FAMILY.load_denoiser(checkpoint, torch.float32)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Gaussian numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rows_of(text: GemmaText, *prompts: str) -> dict[str, Any]:
    """The transformer's inputs for a batch of prompts."""
    return FAMILY.denoiser_inputs(text.encode(prompts), [], CPU, torch.float32)


def test_the_velocity_towards_noise_is_diffusers_velocity_with_the_other_sign_and_time(
    tiny_lumina2: Path, text: GemmaText, denoiser: Any
) -> None:
    weights = {name.removeprefix(DENOISER): value.float() for name, value in load_file(tiny_lumina2).items() if name.startswith(DENOISER)}
    theirs = make_transformer(weights)
    latents, levels = random(3, 16, 6, 10), torch.tensor([0.2, 0.9, 0.5])
    inputs = rows_of(text, "a cat", CAPTION, "")  # three lengths
    with torch.no_grad():
        ours = denoiser(latents, levels, **inputs)[0]
        expected = theirs(latents, 1 - levels, **inputs, return_dict=False)[0]
    torch.testing.assert_close(ours, -expected, rtol=1e-4, atol=2e-5)
    assert ours.std() > 0.3


def test_rows_after_a_prompt_do_not_count(text: GemmaText, denoiser: Any) -> None:
    inputs = rows_of(text, "a cat")
    length = int(inputs["encoder_attention_mask"].sum())
    short = {name: value[:, :length] for name, value in inputs.items()}
    changed = {**inputs, "encoder_hidden_states": inputs["encoder_hidden_states"].clone()}
    changed["encoder_hidden_states"][:, length:] = 5.0
    with torch.no_grad():
        results = [denoiser(random(1, 16, 4, 4), torch.tensor(0.5), **each)[0] for each in (inputs, short, changed)]
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=1e-4, atol=1e-5)


def test_the_conditioning_is_the_last_but_one_hidden_state_of_gemma(
    tiny_lumina2: Path, checkpoint: BaseCheckpoint, text: GemmaText
) -> None:
    from transformers import Gemma2Config, Gemma2Model

    whole = tensor_layout.text_config(checkpoint.shapes, f"{TEXT_ENCODER}transformer.model.")
    gemma = Gemma2Model(Gemma2Config(**{**whole, "num_hidden_layers": whole["num_hidden_layers"] + 1})).eval()
    prefix = f"{TEXT_ENCODER}transformer.model."
    gemma.load_state_dict({name.removeprefix(prefix): value for name, value in load_file(tiny_lumina2).items() if name.startswith(prefix)})
    ids = text.tokenize([CAPTION])[0]["gemma"]
    with torch.no_grad():
        expected = gemma(input_ids=ids[None], output_hidden_states=True).hidden_states[-2][0]
    torch.testing.assert_close(text.encode([CAPTION])[0]["embeds"], expected, rtol=1e-5, atol=1e-5)


def test_weights_that_are_converted_layer_by_layer_give_the_same_conditioning(checkpoint: BaseCheckpoint, text: GemmaText) -> None:
    stored = load_gemma(checkpoint.file, None, FAMILY.title)
    compute_layer_by_layer(stored, torch.float32, CPU)
    thrifty = GemmaText(stored, text.tokenizer, text.settings, torch.float32, CPU)
    for prompt in (CAPTION, ""):
        assert torch.equal(thrifty.encode([prompt])[0]["embeds"], text.encode([prompt])[0]["embeds"])
    assert {parameter.dtype for parameter in stored.parameters()} == {torch.bfloat16}


def test_prompts_are_read_by_the_tokenizer_of_the_checkpoint_after_a_system_prompt(tiny_lumina2: Path, text: GemmaText) -> None:
    import sentencepiece

    model = io.BytesIO(load_file(tiny_lumina2)[TOKENIZER].numpy().tobytes())
    reader = sentencepiece.SentencePieceProcessor(model_proto=model.read(), add_bos=True)
    prompts = [CAPTION, "", f"Paint badly. {PROMPT_START} a cat"]
    read = [f"{SYSTEM_PROMPT} {PROMPT_START} {CAPTION}", "", prompts[2]]
    assert [row["gemma"].tolist() for row in text.tokenize(prompts)] == [reader.encode(prompt) for prompt in read]
    assert [text.count_tokens(prompt) for prompt in prompts] == [len(reader.encode(prompt)) for prompt in read]


def test_an_empty_prompt_has_the_system_prompt_where_it_means_what_kohyas_trainer_makes_of_it(checkpoint: BaseCheckpoint) -> None:
    kohya = FAMILY.load_text_encoder(checkpoint, torch.float32, CPU, FAMILY.text_settings(75, 0, "kohya"))
    assert len(kohya.tokenize([""])[0]["gemma"]) == kohya.count_tokens("") > 10


def test_long_captions_are_cut_at_256_tokens_and_counted_whole(checkpoint: BaseCheckpoint, text: GemmaText) -> None:
    caption = "cat, " * 400
    assert text.encode([caption])[0]["embeds"].shape == (256, 64)
    assert FAMILY.token_counter(checkpoint)(caption) == text.count_tokens(caption) > 800


def test_weights_of_one_leave_a_prompt_as_it_is(text: GemmaText) -> None:
    plain = text.apply_weights([("a cat", 1.0)], {}, {})["embeds"]
    torch.testing.assert_close(plain, text.encode(["a cat"])[0]["embeds"])


def test_latents_are_shifted_and_scaled_and_decoded_back(checkpoint: BaseCheckpoint) -> None:
    vae: Any = FAMILY.load_vae(checkpoint, torch.float32)
    pixels = random(2, 3, 32, 48).clamp(-1, 1)
    with torch.no_grad():
        mean, deviation = FAMILY.encode_images(vae, pixels)
        posterior = vae.encode(pixels).latent_dist
        decoded, expected = FAMILY.decode_latents(vae, mean), vae.decode(posterior.mode()).sample
    assert mean.shape == (2, *FAMILY.latents.shape(48, 32))
    torch.testing.assert_close(mean, (posterior.mean - 0.1159) * 0.3611)  # as published with Flux
    torch.testing.assert_close(deviation, posterior.std * 0.3611)
    torch.testing.assert_close(decoded, expected, rtol=1e-4, atol=1e-5)


def test_gradients_are_the_same_with_checkpointing(denoiser: Any, text: GemmaText) -> None:
    inputs, gradients = rows_of(text, "a cat", CAPTION), []
    weight = denoiser.context_refiner[0].attention.qkv.weight.requires_grad_(True)
    for wanted in (False, True):
        (denoiser.enable_gradient_checkpointing if wanted else denoiser.disable_gradient_checkpointing)()
        loss = denoiser.train()(random(2, 16, 4, 4), torch.tensor([0.1, 0.7]), **inputs)[0].square().mean()
        gradients.append(torch.autograd.grad(loss, weight)[0])
    denoiser.disable_gradient_checkpointing()
    denoiser.eval().requires_grad_(False)
    assert gradients[0].any()
    torch.testing.assert_close(gradients[0], gradients[1])


def test_settings_without_a_meaning_are_refused(checkpoint: BaseCheckpoint) -> None:
    assert LatentSpace(16, 8, 0.3611, multiple=16) == FAMILY.latents
    with pytest.raises(UserError, match="clip_skip"):
        FAMILY.text_settings(75, 2)
    with pytest.raises(UserError, match="no convolutions"):
        FAMILY.denoiser_targets(FAMILY.empty_denoiser(checkpoint), "all-linear+conv")


def test_full_size_has_the_published_number_of_parameters_and_the_layers_of_kohyas_trainer() -> None:
    from trainer.families.lumina2.denoiser import Lumina2Transformer

    shapes = layout(SIZES["full"])
    with torch.device("meta"):
        denoiser = Lumina2Transformer(**tensor_layout.denoiser_config(shapes))
    weights = {key.removeprefix(DENOISER): shape for key, shape in shapes.items() if key.startswith(DENOISER) and "norm_final" not in key}
    assert {name: tuple(value.shape) for name, value in denoiser.state_dict().items()} == weights
    published = 2_609_771_456 - 2304  # of a file without norm_final, which nothing uses
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == published
    assert len(FAMILY.denoiser_targets(denoiser, "all-linear")) == 5 * 30
    assert len(FAMILY.denoiser_targets(denoiser, "attention")) == 2 * 30
    # every linear layer of the classes JointTransformerBlock and FinalLayer
    every = [name for name, module in denoiser.named_modules() if isinstance(module, torch.nn.Linear) and "embedder" not in name]
    assert set(FAMILY.denoiser_targets(denoiser, "all-linear", ["modulation", "final_layer"])) == set(every)
