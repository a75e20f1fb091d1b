"""Fixtures that every test folder shares: random checkpoints, and a real ComfyUI where there is one."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

from tests.tools.cache import cache_folder
from tests.tools.comfyui import NO_COMFYUI, ComfyUI, find_comfyui
from tests.tools.scheduling import worker_group

# Set before torch and the Hugging Face libraries are imported. Tests use no network, and idle threads must not spin.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("MPLBACKEND", "Agg")
if shutil.which("nvidia-smi") is None:  # Triton's interpreter runs our kernels; Triton reads this once, when a library imports it
    os.environ.setdefault("TRITON_INTERPRET", "1")
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):  # the workers and the processes they start share the cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
# how long an example takes depends on the machine
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
gc.set_threshold(20_000, 50, 50)  # after importing torch, each full collection visits a million objects

_TESTS = Path(__file__).resolve().parent
_FULL_BYTES = 2_132_000_000  # what a complete full-size checkpoint exceeds
_DISK_BYTES = 6_000_000_000  # a run with nothing cached held 5.0 GB at once


@pytest.fixture(scope="session")
def comfyui() -> ComfyUI:
    """A real ComfyUI. Without one the test is skipped, which the summary reports."""
    found = find_comfyui()
    if found is None:
        pytest.skip(NO_COMFYUI)
    return found


@pytest.fixture(scope="session")
def quick_trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Path]]:
    """Takes an interpreter; returns a program that starts training children whose libraries are already loaded (preloaded_trainer.py)."""
    from tests.tools.children.preloaded_trainer import preloaded

    made: dict[Path, Path] = {}
    with ExitStack() as running:

        def program(python: Path) -> Path:
            if python not in made:
                made[python] = running.enter_context(preloaded(python, tmp_path_factory.mktemp("socket")))
            return made[python]

        yield program


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SD 1.x checkpoint of about 14 MB with all 192 LoRA modules: loads and trains in seconds."""
    from random_checkpoints.make_checkpoint import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-sd15.safetensors", "tiny")


@pytest.fixture(scope="session")
def shallow_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random SD 1.x checkpoint with two levels and 72 LoRA modules, which trains twice as fast as one with all of them."""
    from random_checkpoints.make_checkpoint import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("shallow") / "shallow-sd15.safetensors", "shallow")


@pytest.fixture(scope="session")
def tiny_checkpoints(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random checkpoint of every family, with the family's real number of LoRA modules."""
    from random_checkpoints.make_checkpoint import make_checkpoint

    folder = tmp_path_factory.mktemp("families")
    return {
        "sd1": tiny_checkpoint,
        "sd2": make_checkpoint(folder / "tiny-sd2.safetensors", "tiny-sd2"),
        "sdxl": make_checkpoint(folder / "tiny-sdxl.safetensors", "tiny-sdxl"),
    }


@pytest.fixture(scope="session")
def shallow_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random SDXL checkpoint with fewer transformer blocks than the real one, which trains several times as fast."""
    from random_checkpoints.make_checkpoint import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("shallow") / "shallow-sdxl.safetensors", "shallow-sdxl")


@pytest.fixture(scope="session")
def tiny_anima(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The transformer of a tiny random Anima, with its text encoder and VAE in the folders beside it as in ComfyUI's models."""
    from random_checkpoints.anima import make_anima

    return make_anima(tmp_path_factory.mktemp("anima"), "tiny")


@pytest.fixture(scope="session")
def tiny_lumina2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint of Lumina 2 with all its models in one file."""
    pytest.importorskip("sentencepiece")
    from random_checkpoints.lumina2 import make_lumina2

    return make_lumina2(tmp_path_factory.mktemp("lumina2") / "tiny-lumina2.safetensors")


@pytest.fixture(scope="session")
def full_checkpoint() -> Path:
    """A random SD 1.5 checkpoint of the real size (2.13 GB), kept between runs outside the checkout."""
    from random_checkpoints.make_checkpoint import VERSION, make_checkpoint

    path = cache_folder() / f"random-sd15-v{VERSION}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # only one worker writes it
        if not path.is_file() or path.stat().st_size < _FULL_BYTES:
            make_checkpoint(path, "full")
    return path


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--long``, which ``python run.py test --all`` passes."""
    parser.addoption("--long", action="store_true", help="also run the tests marked long, and the long form of the others")


@pytest.fixture(scope="session")
def long_form(request: pytest.FixtureRequest) -> bool:
    """Whether tests that have a short and a long form run the long one."""
    return bool(request.config.getoption("--long"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests by folder, skip those that lack a ComfyUI, deselect long ones without ``--long``, and put files with dear tests first."""
    missing = find_comfyui() is None
    for item in items:
        folder = item.path.relative_to(_TESTS).parts[0] if item.path.is_relative_to(_TESTS) else ""
        if folder in ("server", "browser"):
            item.add_marker(pytest.mark.comfyui)
        if folder == "browser":
            item.add_marker(pytest.mark.browser)
        if missing and item.get_closest_marker("comfyui"):
            item.add_marker(pytest.mark.skip(reason=NO_COMFYUI))
    if not config.getoption("--long"):
        left_out = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("long")]
    # a worker runs all tests of a file, so that a long file at the end would leave the other workers idle
    dear = {item.path for item in items if any(item.get_closest_marker(name) for name in ("slow", "seconds", "comfyui"))}
    items.sort(key=lambda item: item.path not in dear)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of a file, and those that share a running ComfyUI, in one pytest-xdist worker, so that each ComfyUI starts once.

    ``--dist loadgroup`` would do this with marks, but pytest-xdist 3.8 and pytest 9.2 disagree on how.
    """
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    class Together(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return worker_group(nodeid)

    return Together(config, log)


def pytest_report_header() -> list[str]:
    """Which ComfyUI the tests use, and whether the disk is too full for them."""
    found = find_comfyui()
    lines = [f"ComfyUI: {found.version} in {found.path}" if found else f"ComfyUI: none, its tests are skipped ({NO_COMFYUI})"]
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < _DISK_BYTES:
        space = f"{free / 1e9:.1f} GB are free in {tempfile.gettempdir()}, and full-size files need {_DISK_BYTES / 1e9:.0f}"
        lines.append(f"THE DISK IS NEARLY FULL, so tests will fail: {space}")
    return lines


@pytest.hookimpl(hookwrapper=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """Report prominently what was not tested because there is no ComfyUI."""
    yield
    missed = [report for report in terminalreporter.stats.get("skipped", []) if NO_COMFYUI in str(report.longrepr)]
    if missed:
        terminalreporter.write_sep("!", f"{len(missed)} TESTS SKIPPED: {NO_COMFYUI}", yellow=True, bold=True)
