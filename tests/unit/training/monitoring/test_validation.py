"""Held-out pictures and their loss; max-norm scaling, the moving average and trackers in a run; and all of it after a stop."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.unit.training.monitoring.fake_wandb import FakeWandb
from tests.unit.training_helpers import Trained, configuration, make_dataset, thrown_back, train_here
from trainer.adapters import adapter
from trainer.config import run_config as config
from trainer.config.sections.validation import ValidationSection
from trainer.core import seeding
from trainer.core.errors import UserError
from trainer.dataset import Dataset, open_dataset
from trainer.dataset.loading.open import hold_out
from trainer.families import open_checkpoint
from trainer.families.sd1 import FAMILY
from trainer.lorafile import kohya_unet_key
from trainer.runs import events
from trainer.runs.event_log import loss_history, validation_history
from trainer.runs.loss_curve import draw_loss_curve
from trainer.runs.run_folder import cache_folder
from trainer.training.caching.cache import Cache

pytestmark = pytest.mark.seconds

LIMIT, DECAY, STEPS = 0.03, 0.5, 6
EVERYTHING: dict[str, object] = {
    "network.max_norm": LIMIT,
    "network.dropout": 0.1,
    "optimizer.lr": 2e-2,
    "optimizer.schedule": "cosine",
    "training.ema_decay": DECAY,
    "training.epochs": 3,
    "training.checkpoint_every": 1,
    "validation.share": 0.34,
    "validation.noise_levels": 2,
    "output.tensorboard": True,
    "output.wandb": True,
}


@pytest.fixture(scope="module")
def wandb() -> Any:
    """In place of the real one."""
    with pytest.MonkeyPatch.context() as patch:
        fake = FakeWandb()
        patch.setitem(sys.modules, "wandb", fake)
        patch.delenv("WANDB_MODE", raising=False)
        yield fake


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), 6)


@pytest.fixture(scope="module")
def whole(shallow_checkpoint: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory, wandb: FakeWandb) -> Trained:
    """Six steps with everything on."""
    trained = train_here(configuration(shallow_checkpoint, folder, tmp_path_factory.mktemp("whole"), EVERYTHING))
    assert trained.status == 0
    return trained


@pytest.fixture(scope="module")
def cut(whole: Trained, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The same, thrown back in the middle of an epoch and continued."""
    again = train_here(thrown_back(whole, tmp_path_factory.mktemp("cut") / "runs", 3))
    plans = [event for event in again.told if isinstance(event, events.Plan)]
    assert (again.status, plans[-1].start_step) == (0, 3)
    return again


# the loss


def held(dataset: Dataset, **section: Any) -> set[str]:
    return {item.sha256 for item in hold_out(dataset, ValidationSection(**section))[1].items}


def plain_loss(config: config.RunConfig, weights: dict[str, torch.Tensor] | None) -> dict[str, float]:
    """Mean squared error of the noise by timestep, by diffusers' UNet and DDPM's formula."""
    checkpoint, dataset = open_checkpoint(config.base.checkpoint), open_dataset(Path(config.dataset.path))
    cache = Cache(cache_folder(config), checkpoint.identity(), FAMILY.latents)
    unet: Any = FAMILY.load_denoiser(checkpoint, torch.float32)
    if weights is not None:
        adapter.adapt(unet, FAMILY.denoiser_targets(unet, config.network.targets), config.network, 0)
        adapter.load_state(unet, weights)
    unet.eval()
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)
    wanted = held(dataset, share=0.34)
    losses: dict[str, float] = {}
    for level, timestep in enumerate((250, 750)):  # the middles of two halves
        errors = []
        for item in dataset.items:
            if item.sha256 in wanted:
                latent, _ = cache.latent(item)
                noise = torch.randn(latent.shape, generator=seeding.generator(42, "validation", int(item.sha256[:15], 16), level))
                noisy = (kept[timestep].sqrt() * latent + (1 - kept[timestep]).sqrt() * noise).float()[None]
                with torch.no_grad():
                    predicted = unet(noisy, torch.tensor([timestep]), cache.prompt(item.caption)["embeds"][None]).sample
                errors.append(float((predicted[0] - noise).square().mean()))
        losses[str(timestep)] = sum(errors) / len(errors)
    return losses


def test_the_loss_is_the_plain_error_at_fixed_timesteps_and_noise(whole: Trained) -> None:
    configured = config.load_config(whole.run.config)
    told = validation_history(whole.run.events)
    assert [(event.epoch, event.step) for event in told] == [(0, 0), (1, 2), (2, 4), (3, 6)]
    for event, weights in ((told[0], None), (told[-1], whole.state(STEPS)["ema"])):
        expected = plain_loss(configured, weights)
        assert event.by_timestep == pytest.approx(expected, rel=1e-4)
        assert event.loss == pytest.approx(sum(expected.values()) / 2, rel=1e-4)
        assert event.pictures == 2
    assert len({event.loss for event in told}) == 4


def test_the_plan_counts_only_training_images(whole: Trained) -> None:
    plan = next(event for event in whole.told if isinstance(event, events.Plan))
    assert (plan.images, plan.held_out, plan.steps) == (4, 2, STEPS)


def test_a_run_of_another_seed_and_objective_measures_the_same_base(
    whole: Trained, shallow_checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    changes: dict[str, object] = {
        "training.seed": 7,
        "training.max_steps": 1,
        "objective.loss": "huber",
        "objective.min_snr_gamma": 5.0,
        "objective.noise_offset": 0.1,
        "training.batch_size": 2,
        "validation.share": 0.34,
        "validation.noise_levels": 2,
    }
    other = train_here(configuration(shallow_checkpoint, folder, tmp_path, changes))
    first, second = (validation_history(trained.run.events)[0].loss for trained in (whole, other))
    assert first == pytest.approx(second, rel=1e-5)


def test_the_curve_shows_the_validation_loss(whole: Trained, tmp_path: Path) -> None:
    steps, told = loss_history(whole.run.events), validation_history(whole.run.events)
    for name, shown in (("with", told), ("without", [])):
        draw_loss_curve(steps, tmp_path / f"{name}.png", title="x", validation=shown)
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()


# max-norm and average


def norms(state: dict[str, Any]) -> list[float]:
    """Of scale * up * down, with the scale of rank 4 and alpha 2."""
    lora = state["lora"]
    names = [name.removesuffix(".up") for name in lora if name.endswith(".up")]
    return [0.5 * float((lora[f"{name}.up"].flatten(1) @ lora[f"{name}.down"].flatten(1)).norm()) for name in names]


def test_no_module_exceeds_the_norm_limit_and_logged_norms_match_the_weights(whole: Trained) -> None:
    for event in whole.steps:
        own = norms(whole.state(event.step))
        assert max(own) <= LIMIT * (1 + 1e-5)
        assert event.weight_norm == pytest.approx(sum(own) / len(own), rel=1e-4)
        assert event.weight_norm_max == pytest.approx(max(own), rel=1e-4)
    assert max(norms(whole.state(STEPS))) == pytest.approx(LIMIT, rel=1e-4)  # it did bite


def test_without_a_limit_norms_are_measured_at_the_first_tenth_and_last_step(
    shallow_checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    changes = {"training.epochs": 4, "training.gradient_accumulation": 2, "training.checkpoint_every": 10}
    trained = train_here(configuration(shallow_checkpoint, folder, tmp_path, changes))
    assert [event.step for event in trained.steps if event.weight_norm is not None] == [1, 10, 12]
    own = norms(trained.state(10))
    assert trained.steps[9].weight_norm == pytest.approx(sum(own) / len(own), rel=1e-4)
    assert trained.steps[9].weight_norm_max == pytest.approx(max(own), rel=1e-4)


def test_the_file_holds_the_moving_average_of_the_steps_weights(whole: Trained, shallow_checkpoint: Path) -> None:
    configured = config.load_config(whole.run.config)
    unet = FAMILY.load_denoiser(open_checkpoint(str(shallow_checkpoint)), torch.float32)
    seed = seeding.derive_seed(configured.training.seed, "weights") % 2**32
    adapter.adapt(unet, FAMILY.denoiser_targets(unet, "all-linear"), configured.network, seed)
    expected = {name: value.double() for name, value in adapter.state(unet).items()}
    for step in range(1, STEPS + 1):
        decay = min(DECAY, (1 + step) / (10 + step))
        lora = whole.state(step)["lora"]
        expected = {name: decay * value + (1 - decay) * lora[name].double() for name, value in expected.items()}
    last = whole.state(STEPS)
    kept = last["ema"]
    written = load_file(str(whole.run.lora))
    for name, value in expected.items():
        assert torch.allclose(kept[name].double(), value, atol=1e-6), name
        module, _, side = name.rpartition(".")
        assert torch.equal(written[f"{kohya_unet_key('sd1', module)}.lora_{side}.weight"], kept[name].half())
    assert any(not torch.allclose(kept[name], last["lora"][name], atol=1e-5) for name in kept)


def test_metadata_has_norm_limit_and_moving_average(whole: Trained) -> None:
    with safe_open(str(whole.run.lora), "pt") as file:
        metadata = file.metadata()
    assert (metadata["ss_scale_weight_norms"], metadata["animelora.ema_decay"]) == (str(LIMIT), str(DECAY))
    assert metadata["ss_num_train_images"] == "4"


def test_what_cannot_work_together_is_refused() -> None:
    base = {"base": {"checkpoint": "x"}, "dataset": {"path": "y"}}
    for bad in (
        {"optimizer": {"name": "schedule-free"}, "training": {"ema_decay": 0.9}},
        {"optimizer": {"name": "schedule-free"}, "network": {"max_norm": 1.0}},
        {"network": {"max_norm": 1.0, "dora": True}},
    ):
        with pytest.raises(UserError):
            config.parse({**base, **bad})


# after a stop


def same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def test_a_resumed_run_has_the_same_bits_in_every_part_of_its_state(whole: Trained, cut: Trained) -> None:
    one, other = whole.state(STEPS), cut.state(STEPS)
    assert {"ema", "lora", "optimizer", "schedule", "average"} <= one.keys() == other.keys()
    for part in one:
        assert same(one[part], other[part]), part
    assert cut.run.lora.read_bytes() == whole.run.lora.read_bytes()


def test_a_resumed_run_logs_the_same_losses_and_validations(whole: Trained, cut: Trained) -> None:
    told = [[(e.step, e.loss, e.by_timestep) for e in validation_history(trained.run.events)] for trained in (whole, cut)]
    assert told[0] == told[1]
    steps = [
        [(e.step, e.loss, e.loss_average, e.grad_norm, e.lr, e.weight_norm) for e in loss_history(trained.run.events)]
        for trained in (whole, cut)
    ]
    assert steps[0] == steps[1]


# trackers


def test_tensorboard_has_every_scalar(whole: Trained) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(whole.run.path / "tensorboard"))
    log.Reload()
    names = {"loss", "loss/average", "lr", "grad_norm", "weight_norm", "weight_norm/max", "validation", "validation/timestep 250"}
    assert names <= set(log.Tags()["scalars"])
    assert [(scalar.step, scalar.value) for scalar in log.Scalars("validation")] == [
        (event.step, pytest.approx(event.loss)) for event in validation_history(whole.run.events)
    ]


def test_wandb_has_every_step_and_stays_offline_without_an_account(whole: Trained, wandb: FakeWandb) -> None:
    started = wandb.started[0]
    assert (started["mode"], started["name"], started["id"]) == ("offline", "style", whole.run.path.name.rsplit("-", 1)[-1])
    assert str(whole.run.path.parent) not in repr(started["config"])
    logged = [values for values in wandb.logged if "loss" in values][:STEPS]
    assert [(values["step"], values["loss"], values["grad_norm"]) for values in logged] == [
        (event.step, event.loss, event.grad_norm) for event in whole.steps
    ]
    assert wandb.finished


@pytest.mark.parametrize("failing", ["init", "log", "missing"])
def test_failing_tracker_causes_one_warning(
    failing: str, shallow_checkpoint: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    fake: Any = None if failing == "missing" else FakeWandb()
    if fake is not None:
        setattr(fake, failing, broken)
    monkeypatch.setitem(sys.modules, "wandb", fake)  # None: as if it were not installed
    changes = {"output.wandb": True, "training.max_steps": 2}
    trained = train_here(configuration(shallow_checkpoint, folder, tmp_path, changes))
    assert trained.status == 0
    warnings = [event.message for event in trained.told if isinstance(event, events.Warning_)]
    assert len(warnings) == 1
    assert ("pip install wandb" if failing == "missing" else "no network") in warnings[0]
