"""Every acceleration can be removed, and turns itself off on a torch that lacks the private APIs it needs."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from tests.unit.compute.helpers import same_training
from tests.unit.training_helpers import Trained, configuration, make_dataset, train_here
from trainer.compute import accelerations, torch_private
from trainer.compute.acceleration import Context
from trainer.plan import planning
from trainer.runs import events
from trainer.runs.run_plan import RunPlan

# settings that ask for as many accelerations as a CPU has
BF16: dict[str, Any] = {"training.precision": "bf16", "training.gradient_accumulation": 1, "training.max_steps": 2}
ROOT = Path(__file__).resolve().parents[3]
NAMES = list(accelerations._CLASSES)
APIS = [(acceleration, api) for acceleration, apis in torch_private.APIS.items() for api in apis]


@pytest.fixture(scope="module", autouse=True)
def bf16_process() -> Iterator[None]:
    """accelerate lets a process have one precision, and tests before or after these may have another."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def two_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of two images."""
    return make_dataset(tmp_path_factory.mktemp("two"), 2)


@pytest.fixture(scope="module")
def accelerated(shallow_checkpoint: Path, two_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run with the accelerations of a CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "_WORTH_GB", 1e-6)  # packs even a small model
        return train_here(configuration(shallow_checkpoint, two_images, tmp_path_factory.mktemp("accelerated"), BF16))


def remove(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As if the line of each acceleration and its module were deleted."""
    classes = accelerations._CLASSES
    # not delitem, which puts the name back at the end: the order counts
    monkeypatch.setattr(accelerations, "_CLASSES", {name: path for name, path in classes.items() if name not in names})
    for name in names:
        module = f"trainer.compute.{classes[name].partition(':')[0]}"
        for loaded in [loaded for loaded in sys.modules if loaded == module or loaded.startswith(f"{module}.")]:
            monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.seconds
def test_training_works_without_each_acceleration(
    name: str, shallow_checkpoint: Path, two_images: Path, tmp_path: Path, accelerated: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_WORTH_GB", 1e-6)
    remove(monkeypatch, name)
    trained = train_here(configuration(shallow_checkpoint, two_images, tmp_path, BF16))
    same_training(accelerated, trained, loss=0.01, norm=0.05)
    assert accelerations.find(name) is None


@pytest.mark.seconds
def test_training_works_without_any_acceleration(
    shallow_checkpoint: Path, two_images: Path, tmp_path: Path, accelerated: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove(monkeypatch, *NAMES)
    trained = train_here(configuration(shallow_checkpoint, two_images, tmp_path, {**BF16, "training.compile": True}))
    same_training(accelerated, trained, loss=0.01, norm=0.05)


@pytest.mark.parametrize(("name", "api"), APIS)
def test_a_missing_private_api_turns_an_acceleration_off_with_a_warning(name: str, api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"training.compile": name == "compiled_blocks"}
    config = configuration(Path("a.safetensors"), Path("dataset"), Path("runs"), wanted)
    context = Context(config, torch.device("cuda" if name == "cuda_graphs" else "cpu"), torch.bfloat16)
    acceleration = accelerations.find(name)
    assert acceleration is not None and acceleration.is_wanted(context)
    assert torch_private.missing(name) == []
    hide(api, monkeypatch)
    assert torch_private.missing(name) == [f"torch.{api}"]
    assert not accelerations.is_available(name, context)
    plan = RunPlan(1, {}, 1, 1, 1, 1, 1, "sd1", "cpu", "bf16", 1.0, prepacked=True, cuda_graphs=True)
    assert acceleration.is_on(config, plan) and acceleration not in accelerations.enabled(config, plan)
    (warning,) = [message for message in accelerations.warnings(context) if acceleration.title in message]
    assert f"this version of torch has no torch.{api}" in warning


def test_only_its_own_files_import_an_acceleration() -> None:
    """Whoever deletes the file or folder of an acceleration, and its line, leaves no import behind."""
    modules = {f"trainer.compute.{path.partition(':')[0]}" for path in accelerations._CLASSES.values()}
    for file in (ROOT / "trainer").rglob("*.py"):
        package = ".".join(file.relative_to(ROOT).parent.parts)
        own = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom):
                continue
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for imported in [source, *(f"{source}.{alias.name}" for alias in node.names)]:
                found = [module for module in modules if imported == module or imported.startswith(f"{module}.")]
                assert not found or own.startswith(found[0]), f"{file} imports {imported}"


def hide(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a torch without ``api``. An operator cannot be deleted, and other code needs some of the names: only the look-up fails."""
    exists = torch_private._exists
    monkeypatch.setattr(torch_private, "_exists", lambda path: path != api and exists(path))


@pytest.mark.seconds
def test_a_run_without_a_private_api_warns_and_trains(
    shallow_checkpoint: Path, two_images: Path, tmp_path: Path, accelerated: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_WORTH_GB", 1e-6)
    for api in (torch_private.APIS["onednn"][0], torch_private.APIS["cpu_attention"][0]):
        hide(api, monkeypatch)
    trained = train_here(configuration(shallow_checkpoint, two_images, tmp_path, BF16))
    same_training(accelerated, trained, loss=0.01, norm=0.05)
    messages = [event.message for event in trained.told if isinstance(event, events.Warning_)]
    assert len(messages) == 2 and all("this version of torch has no torch.ops." in message for message in messages)


def test_names_that_torch_does_not_have_are_missing() -> None:
    assert not torch_private._exists("ops.mkldnn._no_such_operator")
    assert not torch_private._exists("_foreach_no_such_function")
    assert torch_private._exists("nn.Linear")
