"""Validation images are those of diffusers' own pipeline for the same embeddings, noise and scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from trainer.families import open_checkpoint
from trainer.families.sd1 import FAMILY
from trainer.training.monitoring.latent_sampling import decode_to_image, sample_latents

STEPS = 4


@pytest.fixture(scope="module")
def pipeline(shallow_checkpoint: Path) -> Any:
    """diffusers' pipeline around the tiny checkpoint's parts."""
    checkpoint = open_checkpoint(str(shallow_checkpoint))
    text: Any = FAMILY.load_text_encoder(checkpoint, torch.float32, torch.device("cpu"))
    made = StableDiffusionPipeline(
        vae=FAMILY.load_vae(checkpoint, torch.float32),
        text_encoder=text.model,
        tokenizer=text.tokenizer,
        unet=FAMILY.load_denoiser(checkpoint, torch.float32),
        scheduler=FAMILY.sampling_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def ours(pipeline: Any, guidance: float, seed: int = 5, **more: Any) -> torch.Tensor | None:
    """The trainer's latents for a prompt, 48 by 64 pixels."""
    tokens = {"padding": "max_length", "max_length": 77, "truncation": True, "return_tensors": "pt"}
    with torch.no_grad():
        rows = [pipeline.text_encoder(pipeline.tokenizer([prompt], **tokens).input_ids)[0][0] for prompt in ("a cat", "blurry")]
    return sample_latents(
        pipeline.unet,
        FAMILY,
        {"embeds": rows[0]},
        {"embeds": rows[1]},
        width=48,
        height=64,
        steps=STEPS,
        guidance=guidance,
        generator=torch.Generator().manual_seed(seed),
        device=torch.device("cpu"),
        dtype=torch.float32,
        **more,
    )


def theirs(pipeline: Any, guidance: float, output: str = "latent", seed: int = 5) -> Any:
    """diffusers' result for the same settings."""
    return pipeline(
        "a cat",
        negative_prompt="blurry",
        width=48,
        height=64,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(seed),
        output_type=output,
    ).images


@pytest.mark.parametrize("guidance", [1.0, 3.0, 7.5])
def test_the_latents_are_those_of_diffusers_pipeline(pipeline: Any, guidance: float) -> None:
    result = ours(pipeline, guidance)
    assert result is not None and result.shape == (1, 4, 8, 6)
    torch.testing.assert_close(result, theirs(pipeline, guidance), rtol=1e-4, atol=1e-4)


def test_the_image_equals_that_of_diffusers_pipeline(pipeline: Any) -> None:
    result = ours(pipeline, 7.5)
    assert result is not None
    picture = decode_to_image(FAMILY, pipeline.vae, result)
    expected = theirs(pipeline, 7.5, "pil")[0]
    assert picture.size == expected.size == (48, 64)
    assert np.abs(np.asarray(picture, dtype=int) - np.asarray(expected, dtype=int)).max() <= 1  # a level of rounding


def test_the_image_depends_on_the_seed_alone(pipeline: Any) -> None:
    first, again, other = ours(pipeline, 2.0, 1), ours(pipeline, 2.0, 1), ours(pipeline, 2.0, 2)
    assert first is not None and again is not None and other is not None
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=0.1)


def test_sampling_stops_on_request(pipeline: Any) -> None:
    asked = iter([False, False, True])
    assert ours(pipeline, 2.0, stop=lambda: next(asked)) is None
    assert next(asked, "nobody asked again") == "nobody asked again"
