"""A server and an open browser for each ComfyUI and each way of drawing nodes, shared by this package's tests.

After them they are closed: a page that is only open takes a tenth of a processor, and other tests come after.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.browser.frontend import Frontend, find_chromium, opened
from tests.browser.stage import controlnet, lora
from tests.server.comfy_server import Server, start
from tests.server.files import portrait
from tests.server.templates import install_model_files
from tests.tools.cache import cache_folder
from tests.tools.comfyui import ComfyUI, find_comfyuis
from tests.tools.workflows.parts import CONTROLNET, LORA_FILE

GATE = {  # what each further look repeats without --long; the first one runs everything
    "vue": ("test_workflows.py", "test_loras.py", "test_presets.py", "test_panel.py", "test_an_epoch_is_picked_from_the_grid"),
    "newest frontend": ("test_workflows.py",),
    "older ComfyUI": ("test_workflows.py", "test_a_template_runs_and_its_picture_brings_it_back"),
}
NEWEST = "1.58.1"  # of comfyui-frontend-package
_FOUND = find_comfyuis()


@dataclass(frozen=True)
class Look:
    """One way in which the canvas can be looked at."""

    comfyui: ComfyUI | None
    vue: bool = False
    light: bool = False
    front_end: str = ""  # a version of comfyui-frontend-package other than the one that the ComfyUI pins

    @property
    def id(self) -> str:
        """For the test's name."""
        version = self.comfyui.version if self.comfyui else "none"
        served = f" with frontend {self.front_end}" if self.front_end else ""
        return f"{version}{served} {'vue' if self.vue else 'classic'} {'light' if self.light else 'dark'}"

    @property
    def slug(self) -> str:
        """For file names."""
        return re.sub(r"\W+", "_", self.id)

    @property
    def first(self) -> bool:
        """Classic and dark on the newest ComfyUI with its own frontend, where most is tried."""
        return bool(_FOUND) and self == Look(_FOUND[0])


def looks() -> list[Look]:
    """Classic and dark on every ComfyUI; Vue nodes and light colours on the newest, and there the newest frontend, too.

    The oldest supported ComfyUI's frontend is too old for both.
    """
    if not _FOUND:
        return [Look(None)]
    newest = _FOUND[0]
    if newest.version == "0.3.64":
        return [Look(each) for each in _FOUND]
    return [Look(newest), Look(newest, vue=True, light=True), Look(newest, front_end=NEWEST), *(Look(older) for older in _FOUND[1:])]


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark as long what a look other than the first need not repeat each time."""
    params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    chosen = params.get("look")
    if not isinstance(chosen, Look) or chosen.first:
        return
    kind = "vue" if chosen.vue else "newest frontend" if chosen.front_end else "older ComfyUI"
    if not {item.path.name, item.name.partition("[")[0]} & set(GATE[kind]):
        item.add_marker(pytest.mark.long)


@pytest.fixture(scope="package")
def servers(tmp_path_factory: pytest.TempPathFactory, shallow_checkpoint: Path) -> Iterator[dict[str, Server]]:
    """Running servers by version; one at a time, the machine may be small."""
    running: dict[str, Server] = {}
    yield running
    for server in running.values():
        server.stop()


@pytest.fixture(scope="package", params=looks(), ids=lambda look: look.id)
def look(request: pytest.FixtureRequest) -> Look:
    """Each way of looking in turn; a machine without ComfyUI or Chromium says so."""
    chosen: Look = request.param
    if chosen.comfyui is None:
        request.getfixturevalue("comfyui")  # skips, and says why
    if find_chromium() is None:
        pytest.skip("no Chromium: install chromium, or put one on the PATH")
    return chosen


@pytest.fixture(scope="session")
def demo_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA and a ControlNet for the demo base, under the names that the example graphs have."""
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
    """The server behind ``look``, with everything on the menus that the example graphs name."""
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
    """The static files of a frontend package, installed once into the tests' cache; skipped, loudly, where it cannot be had."""
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
