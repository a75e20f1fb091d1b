"""Memory presets, and what a run is estimated to need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from random_checkpoints.anima import make_empty_anima
from random_checkpoints.lumina2 import make_empty_lumina2
from random_checkpoints.make_checkpoint import make_empty_checkpoint
from tests.tools.parameters import mark_long
from tests.unit.training_helpers import configuration, make_dataset
from trainer.adapters.adapter import Pair
from trainer.config import memory_presets, presets, run_config
from trainer.config.run_config import PRESET_KEYS, RunConfig
from trainer.config.sections.optimizer import OptimizerSection
from trainer.families import family_of, open_checkpoint
from trainer.launch.prepared_run import prepare_run
from trainer.plan import meta_models
from trainer.plan.inputs import open_inputs
from trainer.plan.memory_estimate import state_bytes
from trainer.plan.meta_models import MetaModels
from trainer.training.optimizers import make_optimizer

pytestmark = pytest.mark.seconds

BETWEEN = ("16gb", "12gb")  # sizes whose presets are estimated only with --long
PIXELS = {"sd15": 512, "sdxl": 1024, "anima": 1024, "lumina2": 1024}
FULL = {"sd15": "full", "sdxl": "full-sdxl"}
MINIMAL: dict[str, Any] = {"base": {"checkpoint": "x"}, "dataset": {"path": "y"}}


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of the real sizes without their content."""
    folder = tmp_path_factory.mktemp("headers")
    made = {family: make_empty_checkpoint(folder / f"{size}.safetensors", size) for family, size in FULL.items()}
    return {**made, "anima": make_empty_anima(folder), "lumina2": make_empty_lumina2(folder / "lumina2.safetensors")}


@pytest.fixture(scope="module")
def models() -> MetaModels:
    """The models that the estimates share, as in ``memory = "auto"``: building those of SDXL and Anima takes seconds."""
    return MetaModels()


def memory_of(models: MetaModels, settings: RunConfig, header: Path, family: str) -> dict[str, float]:
    """What a run of a family needs, in GB."""
    checkpoint, pixels = open_checkpoint(str(header)), PIXELS[family]
    return meta_models.memory_of(settings, family_of(checkpoint), checkpoint, (pixels, pixels), torch.bfloat16, models=models)


@pytest.fixture(scope="module")
def needed(headers: dict[str, Path], models: MetaModels) -> Callable[[str, str], dict[str, float]]:
    """What the preset of a family and a size needs, for a batch of four."""
    settings = run_config.parse({**MINIMAL, "training": {"memory": "auto", "batch_size": 4}})

    def of(family: str, size: str) -> dict[str, float]:
        return memory_of(models, memory_presets.with_preset(settings, size, family), headers[family], family)

    return of


@pytest.mark.parametrize("size", mark_long(memory_presets.SIZES, *BETWEEN))
@pytest.mark.parametrize("family", PIXELS)
def test_preset_needs_less_memory_than_its_gpu_has(needed: Callable[[str, str], dict[str, float]], family: str, size: str) -> None:
    parts = needed(family, size)
    assert sum(parts.values()) < memory_presets.SIZES[size] * 0.95  # the screen of a desktop takes some, too
    assert parts["base"] > 0.5 and parts["activations"] > 0.05 and parts["lora"] > parts["optimizer"] > 0


@pytest.mark.parametrize("name", ["style-sd15", "style-sdxl"])
def test_largest_training_preset_fits_the_smallest_gpu(headers: dict[str, Path], models: MetaModels, name: str) -> None:
    # styles train the most layers at the highest rank, so that the other subjects, and larger GPUs, need no test of their own
    wide = {key: presets.values(name)[key] for key in ("network.rank", "network.targets")}
    assert wide == {"network.rank": 16, "network.targets": "all-linear+conv"}
    assert all(presets.values(other)["network.rank"] <= 16 for other in presets.names())
    family = "sdxl" if name.endswith("sdxl") else "sd15"
    filled = memory_presets.with_preset(run_config.parse({**MINIMAL, "preset": name}), "6gb", family)
    parts = memory_of(models, filled, headers[family], family)
    assert sum(parts.values()) < memory_presets.SIZES["6gb"] * 0.95


@pytest.mark.parametrize("family", PIXELS)
def test_presets_for_smaller_gpus_need_less_memory(needed: Callable[[str, str], dict[str, float]], family: str, long_form: bool) -> None:
    sums = [sum(needed(family, size).values()) for size in memory_presets.SIZES if long_form or size not in BETWEEN]
    assert sums == sorted(sums, reverse=True)


def test_explicit_values_win_over_the_memory_preset() -> None:
    settings = run_config.parse({**MINIMAL, "training": {"memory": "6gb", "gradient_checkpointing": False}, "optimizer": {"name": "lion"}})
    filled = memory_presets.with_preset(settings, "6gb", "sdxl")
    assert (filled.training.gradient_checkpointing, filled.optimizer.name) == (False, "lion")
    assert (filled.training.base_precision, filled.training.micro_batch_size) == ("int8", 1)


def test_memory_preset_keeps_batch_rank_and_accumulation() -> None:
    for family, sizes in memory_presets.PRESETS.items():
        for size, values in sizes.items():
            assert set(values) <= set(PRESET_KEYS), (family, size)
    assert not {"training.batch_size", "network.rank", "training.gradient_accumulation"} & set(PRESET_KEYS)


def test_preset_without_bitsandbytes_keeps_the_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.config.memory_presets.importlib.util.find_spec", lambda name: None)
    assert "optimizer.name" not in memory_presets.preset("6gb", "sdxl")


def test_memory_preset_and_its_settings_are_the_same_run(shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path) -> None:
    preset = configuration(shallow_checkpoint, dataset_folder, tmp_path, {"training.memory": "6gb"})
    written = configuration(
        shallow_checkpoint, dataset_folder, tmp_path, {"training.gradient_checkpointing": True, "training.micro_batch_size": 1}
    )
    plain = configuration(shallow_checkpoint, dataset_folder, tmp_path)
    assert prepare_run(preset).folder.path == prepare_run(written).folder.path != prepare_run(plain).folder.path


def test_settled_configuration_stays_settled(shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path) -> None:
    settings = open_inputs(configuration(shallow_checkpoint, dataset_folder, tmp_path, {"training.memory": "6gb"})).config
    path = tmp_path / "config.json"
    path.write_text(settings.to_json(), encoding="utf-8")
    assert open_inputs(run_config.load_config(path)).config == settings
    assert settings.training.gradient_checkpointing and settings.training.memory == "6gb"


def test_unsettled_preset_survives_saving_and_absolute_paths(shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path) -> None:
    settings = configuration(shallow_checkpoint, dataset_folder, tmp_path, {"training.memory": "6gb"})
    path = tmp_path / "config.json"
    path.write_text(run_config.absolute(settings).to_json(), encoding="utf-8")
    assert open_inputs(run_config.load_config(path)).config == open_inputs(settings).config


@pytest.mark.parametrize("total", [1e6, 1e-6])
def test_auto_takes_the_fastest_preset_that_fits(
    shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, total: float
) -> None:
    monkeypatch.setattr("trainer.core.devices.total_memory_gb", lambda device: total)
    settings = open_inputs(configuration(shallow_checkpoint, dataset_folder, tmp_path, {"training.memory": "auto"})).config
    chosen = (settings.training.gradient_checkpointing, settings.training.micro_batch_size)
    assert chosen == ((False, 0) if total > 1 else (True, 1))


def test_auto_tries_presets_from_the_fastest_on() -> None:
    seen: list[RunConfig] = []

    def needs(candidate: RunConfig) -> float:
        seen.append(candidate)
        return 17.0 if len(seen) < 3 else 7.0

    settings = run_config.parse({**MINIMAL, "training": {"memory": "auto"}})
    chosen = memory_presets.settled(settings, "sdxl", 8.0, needs)
    assert chosen == seen[2] == memory_presets.with_preset(settings, "16gb", "sdxl")


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "adafactor", "lion", "prodigy", "schedule-free"])
@pytest.mark.parametrize("shape", [(16, 640), (16, 40, 3, 3), (16, 100)])
def test_optimizer_state_has_the_estimated_size(name: str, shape: tuple[int, ...]) -> None:
    packages = {"adamw8bit": "bitsandbytes", "lion": "lion_pytorch", "prodigy": "prodigyopt", "schedule-free": "schedulefree"}
    if name in packages:
        pytest.importorskip(packages[name])
    down = torch.nn.Parameter(torch.randn(shape))
    up = torch.nn.Parameter(torch.randn(4, 4))
    optimizer = make_optimizer([Pair("m", down, up)], OptimizerSection(name=name), 1e-3)  # type: ignore[arg-type]
    if hasattr(optimizer, "train"):
        optimizer.train()
    down.grad, up.grad = torch.randn(shape), torch.randn(4, 4)
    optimizer.step()
    state = [value for key, value in optimizer.state[down].items() if torch.is_tensor(value) and not key.startswith("qmap")]
    kept = sum(value.numel() * value.element_size() for value in state if value.numel() > 1)
    assert state_bytes(down.shape, name) == pytest.approx(kept, rel=0.02)


def test_plan_lists_what_the_memory_is_used_for(shallow_checkpoint: Path, tmp_path: Path) -> None:
    from trainer.dataset import open_dataset
    from trainer.plan.planning import make_plan

    folder, checkpoint = make_dataset(tmp_path, 1), open_checkpoint(str(shallow_checkpoint))

    def plan(changes: dict[str, Any]) -> Any:
        settings = configuration(shallow_checkpoint, folder, tmp_path, changes)
        return make_plan(settings, open_dataset(folder), family_of(checkpoint), checkpoint, torch.device("cpu"), "bf16")

    plain, packed = plan({}), plan({"training.base_precision": "int8"})
    assert sum(plain.memory.values()) == pytest.approx(plain.memory_gb, abs=0.01)
    assert list(plain.memory) == ["base", "lora", "optimizer", "activations", "overhead"]
    frozen = sum(parameter.numel() for parameter in family_of(checkpoint).empty_denoiser(checkpoint).parameters())
    assert plain.memory["base"] == pytest.approx(frozen * 2 / 1e9, abs=1e-3)
    assert packed.memory["base"] == pytest.approx(frozen / 1e9, abs=0.003)
