"""The recipe at toy size: it learns, it goes on after an interruption, and its parts do what they say."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from demo.drawing.portraits import STYLES
from demo.recipe import drawn_images as pictures_module
from demo.recipe import train_base, train_unet, train_vae, training_stage
from demo.recipe.base_file import write_base
from demo.recipe.base_model import LATENT_SCALE, build_text_encoder, build_unet, build_vae
from demo.recipe.drawn_images import portrait_images, shape_images
from demo.recipe.initialise import full_resolution_blocks, start_vae
from demo.recipe.optimiser import orthogonalise
from demo.recipe.train_unet import LatentSet, UnetSettings, loss_weight, noise_schedule, stratified_timesteps
from demo.recipe.train_vae import VaeSettings, encode_pixels, fold_scale, reconstruction_loss
from demo.recipe.vocabulary import UsedTokens
from tests.unit.demo.toy import TOY

pytestmark = pytest.mark.seconds

CPU = torch.device("cpu")


def quiet(line: str) -> None:
    """No report."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("pictures")
    return [portrait_images(folder, "flat", 6, 128, quiet), shape_images(folder, 4, 128, quiet)]


def test_the_held_back_style_is_refused_as_training_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="never trained on 'anime'"):
        portrait_images(tmp_path, "anime", 1, 128, quiet)
    assert "anime" in STYLES and not list(tmp_path.iterdir())


def test_pictures_are_drawn_once(tmp_path: Path) -> None:
    first = portrait_images(tmp_path, "flat", 2, 128, quiet)
    stamp = (tmp_path / "flat-128.npy").stat().st_mtime_ns
    again = portrait_images(tmp_path, "flat", 2, 128, quiet)
    assert np.array_equal(first, again) and (tmp_path / "flat-128.npy").stat().st_mtime_ns == stamp


def test_orthogonalised_updates_have_singular_values_near_one() -> None:
    matrix = torch.randn(24, 80, generator=torch.Generator().manual_seed(0))
    for m in (matrix, matrix.T):
        values = torch.linalg.svdvals(orthogonalise(m).float())
        assert values.min() > 0.6 and values.max() < 1.4


def test_matrices_side_by_side_are_updated_as_one_by_one() -> None:
    matrices = torch.randn(3, 40, 24, generator=torch.Generator().manual_seed(0))
    together = orthogonalise(matrices)
    for one, matrix in zip(together, matrices, strict=True):
        torch.testing.assert_close(one, orthogonalise(matrix), rtol=0.02, atol=0.01)


def test_processes_draw_what_one_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = portrait_images(tmp_path / "alone", "flat", 5, 64, quiet)
    monkeypatch.setattr(pictures_module, "WORTH_A_PROCESS", 2)
    monkeypatch.setattr("trainer.core.devices.cores", lambda: 2)
    started = []
    start = subprocess.Popen

    def counted(*args: Any, **options: Any) -> Any:
        started.append(args)
        return start(*args, **options)

    monkeypatch.setattr(subprocess, "Popen", counted)
    shared = portrait_images(tmp_path / "shared", "flat", 5, 64, quiet)
    assert np.array_equal(alone, shared) and len(started) == 2


def test_a_process_that_cannot_draw_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="drawing the oil pictures failed"):
        pictures_module._draw_in_processes(tmp_path / "none.npy", "oil", 2, 64, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_learns_what_a_cpu_learns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    g = torch.Generator().manual_seed(0)
    data = LatentSet(torch.randn(6, 4, 8, 8, generator=g), torch.randint(0, 49000, (6, 2, 77), generator=g), torch.full((77,), 49407))
    settings = UnetSettings(minutes=60, max_steps=200, batch=4)
    losses = []
    for device in (CPU, torch.device("cuda")):
        (tmp_path / device.type).mkdir()
        unet, text = train_unet.train_unet(data, tmp_path / device.type, TOY, settings, device)
        losses.append(train_unet.held_out_loss(unet, text, data, device))
    assert losses[1] == pytest.approx(losses[0], rel=0.2) and not caplog.messages


def test_weights_are_v_prediction_s_between_their_bounds() -> None:
    alphas = noise_schedule().alphas_cumprod
    weights = loss_weight(alphas, 5.0, 8.0)
    noise, picture = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0)).double()
    for t in (450, 600):  # the error of v for a small error of the noise, given the same noisy value
        a = float(alphas[t])
        noisy = a**0.5 * picture + (1 - a) ** 0.5 * noise
        wrong = noise + 0.01
        v, wrong_v = (a**0.5 * n - (1 - a) ** 0.5 * (noisy - (1 - a) ** 0.5 * n) / a**0.5 for n in (noise, wrong))
        assert float(weights[t]) * 0.01**2 == pytest.approx(float((wrong_v - v).pow(2).mean()), rel=1e-3)
    snr = float(alphas[0] / (1 - alphas[0]))
    assert float(weights[0]) == pytest.approx(5.0 / snr, rel=1e-4) and float(weights[999]) == 8.0


def test_timesteps_cover_the_schedule_evenly() -> None:
    t = stratified_timesteps(10, 1000, torch.Generator().manual_seed(3)).sort().values
    assert [int(v) // 100 for v in t] == list(range(10))


def test_the_reconstruction_loss_sees_a_lost_line_more_than_its_pixels() -> None:
    line = torch.zeros(1, 3, 32, 32)
    line[..., 16] = 1.0
    even = torch.full_like(line, float(line.mean()))
    assert float(reconstruction_loss(line, line)) == 0.0
    pixels_only = (even - line).abs().mean()
    assert reconstruction_loss(even, line) > 2 * pixels_only


def test_folding_the_scale_changes_no_image_and_makes_latents_of_unit_variance(pictures: list[Any]) -> None:
    torch.manual_seed(0)
    vae = build_vae(TOY).eval()
    before = encode_pixels(vae, pictures[0], CPU)
    with torch.no_grad():
        decoded = vae.decode(before[:1]).sample
        fold_scale(vae, before)
        after = encode_pixels(vae, pictures[0], CPU)
        assert (vae.decode(after[:1]).sample - decoded).abs().mean() < 0.005  # encoding rounds to bfloat16
    scaled = after * LATENT_SCALE
    assert torch.allclose(scaled.std(dim=(0, 2, 3)), torch.ones(4), atol=0.05)
    assert scaled.mean(dim=(0, 2, 3)).abs().max() < 0.05


def test_blocks_at_full_resolution_join_without_a_jump() -> None:
    torch.manual_seed(0)
    vae = build_vae(TOY).eval()
    start_vae(vae)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        full = vae(x).sample
        full_resolution_blocks(vae, active=False)
        assert torch.allclose(vae(x).sample, full, atol=1e-5)


def test_the_autoencoder_learns(tmp_path: Path, pictures: list[Any]) -> None:
    settings = VaeSettings(minutes=10, max_steps=30, batch=2, crop_share=2.0, small_share=0.5, seed=1)
    target = train_vae.batch_of(pictures, 4, 64, np.random.default_rng(9))
    torch.manual_seed(settings.seed)
    untrained = build_vae(TOY)
    start_vae(untrained)
    trained = train_vae.train_vae(pictures, tmp_path, TOY, settings, CPU)
    with torch.no_grad():
        first = reconstruction_loss(untrained(target).sample, target)
        last = reconstruction_loss(trained(target).sample, target)
    assert last < 0.9 * first


def test_an_interrupted_training_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    data = LatentSet(torch.randn(6, 4, 8, 8, generator=g), torch.randint(0, 49000, (6, 2, 77), generator=g), torch.full((77,), 49407))
    settings = UnetSettings(minutes=60, max_steps=4, batch=2, save_minutes=0)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole, _ = train_unet.train_unet(data, tmp_path / "whole", TOY, settings, CPU)
    real, calls = training_stage.save_stage, []

    def interrupted(path: Path, state: Any) -> None:
        real(path, state)
        calls.append(state["step"])
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(train_unet, "save_stage", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_unet.train_unet(data, tmp_path / "parts", TOY, settings, CPU)
    monkeypatch.setattr(train_unet, "save_stage", real)
    parts, _ = train_unet.train_unet(data, tmp_path / "parts", TOY, settings, CPU)
    assert calls == [1, 2]
    for (name, a), b in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


def test_training_continues_from_a_base_file_and_leaves_its_autoencoder_unchanged(tmp_path: Path, pictures: list[Any]) -> None:
    torch.manual_seed(3)
    base = tmp_path / "base.safetensors"
    write_base(base, build_vae(TOY), build_unet(TOY), build_text_encoder(TOY), {})
    vae, unet, text = train_base._weights(base, TOY)
    none = VaeSettings(minutes=0)
    kept = train_vae.train_vae(pictures, tmp_path, TOY, none, CPU, vae)
    assert all(torch.equal(value, vae[name]) for name, value in kept.state_dict().items())
    g = torch.Generator().manual_seed(0)
    data = LatentSet(torch.randn(6, 4, 8, 8, generator=g), torch.randint(0, 49000, (6, 2, 77), generator=g), torch.full((77,), 49407))
    same, _ = train_unet.train_unet(data, tmp_path, TOY, UnetSettings(minutes=0), CPU, start=(unet, text))
    assert all(torch.equal(value, unet[name]) for name, value in same.state_dict().items())
    moved, _ = train_unet.train_unet(data, tmp_path, TOY, UnetSettings(minutes=60, max_steps=1, batch=2, lr=1e-4), CPU, start=(unet, text))
    far = max(float((value - unet[name]).abs().max()) for name, value in moved.state_dict().items())
    assert 0 < far < 0.01


def test_a_shortened_vocabulary_gives_the_same_encoding_and_comes_back_whole() -> None:
    torch.manual_seed(0)
    text = build_text_encoder(TOY).eval()
    before = {k: v.clone() for k, v in text.state_dict().items()}
    ids = torch.tensor([[49406, 320, 2368, *[49407] * 74]])
    with torch.no_grad():
        expected = text(ids).last_hidden_state
        tokens = UsedTokens(text, ids.flatten())
        torch.testing.assert_close(text(tokens.short(ids)).last_hidden_state, expected)
        with pytest.raises(ValueError, match="not announced"):
            tokens.short(ids - 1)
        text.get_input_embeddings().weight += 1.0
    after = tokens.whole(text.state_dict())
    assert after.keys() == before.keys()
    for key, value in after.items():
        moved = (value != before[key]).any(dim=-1).nonzero().flatten().tolist() if key.endswith("token_embedding.weight") else []
        assert moved == (sorted(ids.unique().tolist()) if moved else []), key
