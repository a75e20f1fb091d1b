"""A server and an open browser for each look, shared by this package's tests.

They are closed when these tests end, since an open page alone takes a tenth of a processor.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.frontend import Frontend, find_chromium, opened
from tests.browser.looks import Look, looks
from tests.browser.stage import controlnet, lora
from tests.server.comfy_server import Server, start
from tests.server.files import portrait
from tests.server.templates import install_model_files
from tests.tools.cache import cache_folder
from tests.tools.workflows.parts import CONTROLNET, LORA_FILE

expect.set_options(timeout=30_000)  # milliseconds that a busy machine may need


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark as long what a look shows only with ``--long``."""
    chosen = item.callspec.params.get("look") if isinstance(item, pytest.Function) and hasattr(item, "callspec") else None
    if isinstance(chosen, Look) and chosen.comfyui and not chosen.runs(item.name):
        item.add_marker(pytest.mark.long)


@pytest.fixture(scope="package")
def servers(tmp_path_factory: pytest.TempPathFactory, shallow_checkpoint: Path) -> Iterator[dict[str, Server]]:
    """Running servers by version, at most one at a time to save memory."""
    running: dict[str, Server] = {}
    yield running
    for server in running.values():
        server.stop()


@pytest.fixture(scope="package", params=looks(), ids=lambda look: look.id)
def look(request: pytest.FixtureRequest) -> Look:
    """Each look in turn. Skipped without ComfyUI or Chromium."""
    chosen: Look = request.param
    if chosen.comfyui is None:
        request.getfixturevalue("comfyui")  # skips, and says why
    if find_chromium() is None:
        pytest.skip("no Chromium: install chromium, or put one on the PATH")
    return chosen


@pytest.fixture(scope="session")
def demo_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA and a ControlNet for the demo base, with the names in the example graphs."""
    folder = tmp_path_factory.mktemp("demo files")
    lora(folder / LORA_FILE)
    controlnet(folder / CONTROLNET)
    return folder


@pytest.fixture(scope="package")
def canvas_server(
    look: Look,
    servers: dict[str, Server],
    tmp_path_factory: pytest.TempPathFactory,
    shallow_checkpoint: Path,
    demo_files: Path,
    quick_trainer: Callable[[Path], Path],
) -> Server:
    """The server of ``look``, with every file that the example graphs name."""
    assert look.comfyui is not None
    name = f"{look.comfyui.version} {look.front_end}".strip()
    if name not in servers:
        for other in servers.values():
            other.stop()
        servers.clear()
        base = tmp_path_factory.mktemp(f"canvas-{name.replace(' ', '-')}")
        portraits = base / "input" / "portraits"
        portraits.mkdir(parents=True)
        for number in range(4):
            portrait(96, number).save(portraits / f"{number}.png")
        for kind, file in (("loras", LORA_FILE), ("controlnet", CONTROLNET)):
            place = base / "models" / kind
            place.mkdir(parents=True)
            shutil.copy2(demo_files / file, place)
        install_model_files(base, shallow_checkpoint)
        served = front_end(look.front_end) if look.front_end else None
        python = look.comfyui.python
        servers[name] = start(look.comfyui.path, python, base, front_end=served, children=quick_trainer(python))
    return servers[name]


def front_end(version: str) -> Path:
    """The static files of a frontend package, installed once into the tests' cache. Skips if it cannot be installed."""
    folder = cache_folder() / f"frontend-{version}"
    static = folder / "comfyui_frontend_package" / "static"
    if not (static / "index.html").is_file():
        wanted = f"comfyui-frontend-package=={version}"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), wanted]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if done.returncode or not (static / "index.html").is_file():
            pytest.skip(f"NOT TESTED with the newest frontend: {wanted} could not be installed: {done.stderr[-300:]}")
    return static


@pytest.fixture(scope="package")
def frontend(look: Look, canvas_server: Server) -> Iterator[Frontend]:
    """The open frontend."""
    with opened(canvas_server.url, width=2400, height=1350, vue=look.vue, light=look.light) as page:
        yield page


@pytest.fixture
def on_canvas(frontend: Frontend, look: Look) -> Frontend:
    """The frontend, if the panel is tested in this look: on the newest ComfyUI with classic and with Vue nodes."""
    if not (look.first or look.vue):
        pytest.skip("one server is enough for the training itself")
    return frontend
