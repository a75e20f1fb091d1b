"""What makes a step fast or small changes its loss and gradients by rounding only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch.utils._python_dispatch import TorchDispatchMode

from tests.tools.parameters import mark_long
from tests.unit.compute.helpers import recipe_before_step_one, same_training
from tests.unit.training_helpers import Trained, configuration, lose_a_gradient, lose_the_input_gradient, make_dataset, train_here
from trainer.adapters import adapter
from trainer.compute import compiled_blocks, denoiser_setup
from trainer.compute.lora_layers import FusedLoraLinear, FusedLoraPointwise, LoraConv2d, LoraLinear
from trainer.families import open_checkpoint
from trainer.families.sd1 import FAMILY
from trainer.runs import events
from trainer.training.caching.latent_cache import encode_latents
from trainer.training.monitoring.latent_sampling import decode_to_image

pytestmark = pytest.mark.seconds

WEIGHTED: dict[str, Any] = {"objective.min_snr_gamma": 5.0, "objective.noise_offset": 0.05}
BATCHED: dict[str, Any] = {"training.batch_size": 3, "training.gradient_accumulation": 1, "training.max_steps": 2, "optimizer.lr": 1e-2}


@pytest.mark.parametrize("changes", mark_long([{}, WEIGHTED], {}), ids=["plain", "weighted by noise level"])
def test_splitting_a_batch_keeps_losses(shallow_checkpoint: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = make_dataset(tmp_path, 5)  # batches of three and two
    whole = train_here(configuration(shallow_checkpoint, folder, tmp_path / "whole", {**BATCHED, **changes}))
    for size in (1, 2):  # by two: parts of two and one
        parts = {**BATCHED, **changes, "training.micro_batch_size": size}
        split = train_here(configuration(shallow_checkpoint, folder, tmp_path / str(size), parts))
        # the second loss follows Adam's first update, which divides rounding by the size of what is next to nothing
        same_training(whole, split, loss=5e-3, norm=5e-3)
        assert split.steps[0].loss == pytest.approx(whole.steps[0].loss, rel=1e-5)
        assert split.steps[0].grad_norm == pytest.approx(whole.steps[0].grad_norm, rel=1e-4)


def test_splitting_a_batch_keeps_every_gradient(shallow_checkpoint: Path, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, 3)
    gradients = []
    for size in (0, 2):
        settings = configuration(shallow_checkpoint, folder, tmp_path, {**BATCHED, "training.micro_batch_size": size})
        recipe, batch = recipe_before_step_one(settings)
        recipe.compute_gradients(batch)
        gradients.append([parameter.grad.clone() for parameter in recipe.model.parameters if parameter.grad is not None])
    apart = sum(float((a - b).square().sum()) for a, b in zip(*gradients, strict=True)) ** 0.5
    assert apart < 3e-4 * sum(float(a.square().sum()) for a in gradients[0]) ** 0.5


def test_split_keeps_images_with_their_data(shallow_checkpoint: Path, tmp_path: Path) -> None:
    _, step = recipe_before_step_one(configuration(shallow_checkpoint, make_dataset(tmp_path, 3), tmp_path, BATCHED))
    batch = step.micro_batches[0]
    parts = batch.split(2)
    assert [part.size for part in parts] == [2, 1]
    assert batch.split(0) == [batch] == batch.split(3)
    for name in ("latents", "noise", "input_noise", "timesteps", "weights"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
    assert [*parts[0].conditions, *parts[1].conditions] == batch.conditions
    assert [*parts[0].framings, *parts[1].framings] == batch.framings
    assert [part.fraction for part in parts] == [2 / 3, 1 / 3]
    assert len(fields(batch)) == 11  # a new one has to be split, too


def test_pinned_batches_are_page_locked(shallow_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, step = recipe_before_step_one(configuration(shallow_checkpoint, make_dataset(tmp_path, 1), tmp_path))
    batch = step.micro_batches[0]
    locked: list[torch.Tensor] = []

    def lock(tensor: torch.Tensor) -> torch.Tensor:
        locked.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", lock)
    pinned = batch.pinned()
    assert torch.equal(pinned.latents, batch.latents) and pinned.framings == batch.framings
    assert len(locked) == 5 + len(batch.conditions[0])


class Readings(TorchDispatchMode):
    """Counts what reads a number back from the device, which waits for it."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "_local_scalar_dense" in str(func) or "nonzero" in str(func):
            self.count += 1
        return func(*args, **(kwargs or {}))


def test_step_does_not_wait_for_the_device(shallow_checkpoint: Path, tmp_path: Path) -> None:
    changes = {"objective.min_snr_gamma": 5.0, "objective.loss": "huber"}
    recipe, batch = recipe_before_step_one(configuration(shallow_checkpoint, make_dataset(tmp_path, 2), tmp_path, changes))
    readings = Readings()  # type: ignore[no-untyped-call]
    with readings:
        metrics = recipe.compute_gradients(batch)
    assert readings.count == 0
    with readings:
        float(metrics.loss)
    assert readings.count == 1


def test_channels_last_does_not_change_training(shallow_checkpoint: Path, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, 3)
    changes = {**BATCHED, "network.targets": "all-linear+conv"}
    trained = [
        train_here(configuration(shallow_checkpoint, folder, tmp_path / value, {**changes, "training.channels_last": value}))
        for value in ("off", "on")
    ]
    same_training(*trained, loss=1e-4, norm=5e-3)
    assert [denoiser_setup.channels_last("auto", torch.device(kind), dtype) for kind, dtype in LAYOUTS] == [True, True, False, True]


LAYOUTS = [("cuda", torch.bfloat16), ("cuda", torch.float16), ("cuda", torch.float32), ("cpu", torch.bfloat16)]


def test_lora_casts_like_peft(shallow_checkpoint: Path) -> None:
    results: list[tuple[float, list[torch.Tensor], list[torch.nn.Parameter]]] = []
    for ours in (True, False):
        unet: Any = FAMILY.load_denoiser(open_checkpoint(str(shallow_checkpoint)), torch.bfloat16)
        targets = FAMILY.denoiser_targets(unet, "all-linear+conv")
        if ours:
            adapter.inject(unet, targets, rank=4, alpha=4, seed=1)
            for module in unet.modules():  # as written: folding rounds in other places, see test_lora_layers.py
                module.__class__ = {FusedLoraLinear: LoraLinear, FusedLoraPointwise: LoraConv2d}.get(type(module), type(module))
            trained = adapter.parameters(unet)
        else:
            torch.manual_seed(1)
            inject_adapter_in_model(LoraConfig(r=4, lora_alpha=4, target_modules=targets), unet)
            trained = [parameter for name, parameter in unet.named_parameters() if "lora_" in name]
        for index, (parameter, start) in enumerate(zip(trained, results[0][2] if results else trained, strict=True)):
            drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
            parameter.data = start.data if results else parameter.data + 0.02 * drawn
        draw = torch.Generator().manual_seed(0)
        latents, context = torch.randn(1, 4, 8, 8, generator=draw), torch.randn(1, 77, 64, generator=draw)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = unet.train()(latents.bfloat16(), torch.tensor([5]), context.bfloat16()).sample
        loss = predicted.float().square().mean()
        loss.backward()
        results.append((float(loss.detach()), [parameter.grad for parameter in trained if parameter.grad is not None], trained))
    (loss, gradients, _), (expected, wanted, _) = results
    assert loss == pytest.approx(expected, rel=1e-3)
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    apart = sum(float((a - b).square().sum()) for a, b in zip(gradients, wanted, strict=True)) ** 0.5
    assert apart < 0.02 * sum(float(b.square().sum()) for b in wanted) ** 0.5  # bf16's own rounding


@pytest.mark.slow
def test_compiled_blocks_train_like_eager_ones(
    shallow_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long_form: bool
) -> None:
    """Of each kind of block one is compiled, with ``--long`` all."""
    monkeypatch.setattr(compiled_blocks, "_BACKEND", "aot_eager")  # traced and differentiated as for inductor, without its minutes of C++
    if not long_form:
        monkeypatch.setattr(compiled_blocks, "blocks", lambda unet: {type(block): block for block in denoiser_setup.blocks(unet)}.values())
    folder = make_dataset(tmp_path, 2)
    changes = {"training.gradient_accumulation": 1, "training.max_steps": 1}
    plain = train_here(configuration(shallow_checkpoint, folder, tmp_path / "plain", changes))
    torch._dynamo.reset()
    compiled = train_here(configuration(shallow_checkpoint, folder, tmp_path / "compiled", {**changes, "training.compile": True}))
    same_training(plain, compiled, loss=1e-5)
    assert not [event for event in compiled.told if isinstance(event, events.Warning_)]
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures."""
    return make_dataset(tmp_path_factory.mktemp("four"), 4)


@pytest.fixture(scope="module")
def plain(shallow_checkpoint: Path, four: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of them without a compiler."""
    return train_here(configuration(shallow_checkpoint, four, tmp_path_factory.mktemp("plain")))


@pytest.mark.parametrize("stage", ["forward", "backward"])
def test_a_compiler_that_fails_turns_itself_off_with_a_warning(
    shallow_checkpoint: Path, four: Path, plain: Trained, runs: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def fail(unet: Any) -> None:
        block: Any = denoiser_setup.blocks(unet)[0]  # the first: in the backward pass, the others have their gradients when it fails
        block._compiled_call_impl = lambda *arguments, **named: _failing(stage, type(block).forward(block, *arguments, **named))

    monkeypatch.setattr("trainer.compute.compiled_blocks.compile_blocks", fail)
    failed = train_here(configuration(shallow_checkpoint, four, runs, {"training.compile": True}))
    same_training(plain, failed)
    warnings = [event.message for event in failed.told if isinstance(event, events.Warning_)]
    assert len(warnings) == 1 and "no C++ compiler" in warnings[0]


@pytest.mark.parametrize("lose", [lose_a_gradient, lose_the_input_gradient])
def test_compiler_with_wrong_gradients_turns_off_with_a_warning(
    shallow_checkpoint: Path, four: Path, plain: Trained, runs: Path, monkeypatch: pytest.MonkeyPatch, lose: Callable[[Any], None]
) -> None:
    monkeypatch.setattr("trainer.compute.compiled_blocks.compile_blocks", lose)
    wrong = train_here(configuration(shallow_checkpoint, four, runs, {"training.compile": True}))
    same_training(plain, wrong)
    warnings = [event.message for event in wrong.told if isinstance(event, events.Warning_)]
    assert len(warnings) == 1 and "its gradients were not those of the eager blocks" in warnings[0]


def _failing(stage: str, result: torch.Tensor) -> torch.Tensor:
    if stage == "forward":
        raise RuntimeError("no C++ compiler")

    def hook(_: torch.Tensor) -> None:
        raise RuntimeError("no C++ compiler")

    result.register_hook(hook)
    return result


class SmallMemory:
    """A VAE on which more than one picture at a time, or a picture that is not tiled, runs out of memory."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, vae: Any) -> None:
        self.vae, self.config, self.tiled = vae, vae.config, False

    def encode(self, pixels: torch.Tensor) -> Any:
        if len(pixels) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.vae.encode(pixels)

    def enable_tiling(self) -> None:
        self.tiled = True

    def decode(self, latents: torch.Tensor, return_dict: bool) -> Any:
        if not self.tiled:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.vae.decode(latents, return_dict=return_dict)


def test_vae_encodes_in_halves_and_decodes_in_tiles_without_memory(shallow_checkpoint: Path) -> None:
    vae: Any = FAMILY.load_vae(open_checkpoint(str(shallow_checkpoint)), torch.float32)
    pixels = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    small = SmallMemory(vae)
    with torch.no_grad():
        whole = vae.encode(pixels).latent_dist
    mean, std = encode_latents(FAMILY, small, pixels)
    torch.testing.assert_close(mean, whole.mean * vae.config.scaling_factor, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(std, whole.std * vae.config.scaling_factor, rtol=1e-4, atol=1e-4)
    assert decode_to_image(FAMILY, small, mean[:1]).tobytes() == decode_to_image(FAMILY, vae, mean[:1]).tobytes()
    assert small.tiled
