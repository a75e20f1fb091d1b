"""A server and an open browser for each ComfyUI and each way of drawing nodes, shared by the tests of a session."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.browser.frontend import Frontend, find_chromium, opened
from tests.conftest import ComfyUI
from tests.server.comfy_server import Server, start
from tests.server.conftest import comfyuis
from tests.server.test_workflows import stock

_FOUND = comfyuis()


@dataclass(frozen=True)
class Look:
    """One way in which the canvas can be looked at."""

    comfyui: ComfyUI | None
    vue: bool = False
    light: bool = False

    @property
    def id(self) -> str:
        """For the test's name."""
        version = self.comfyui.version if self.comfyui else "none"
        return f"{version} {'vue' if self.vue else 'classic'} {'light' if self.light else 'dark'}"


def looks() -> list[Look]:
    """Classic and dark on every ComfyUI; Vue nodes and light colours on the newest."""
    if not _FOUND:
        return [Look(None)]
    return [Look(_FOUND[0]), Look(_FOUND[0], vue=True, light=True), *(Look(older) for older in _FOUND[1:])]


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[dict[str, Server]]:
    """Running servers by version; one at a time, the machine may be small."""
    running: dict[str, Server] = {}
    yield running
    for server in running.values():
        server.stop()


@pytest.fixture(scope="session", params=looks(), ids=lambda look: look.id)
def look(request: pytest.FixtureRequest) -> Look:
    """Each way of looking in turn; a machine without ComfyUI or Chromium says so."""
    chosen: Look = request.param
    if chosen.comfyui is None:
        request.getfixturevalue("comfyui")  # skips, and says why
    if find_chromium() is None:
        pytest.skip("no Chromium: install chromium, or put one on the PATH")
    return chosen


@pytest.fixture(scope="session")
def canvas_server(look: Look, servers: dict[str, Server], tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Server:
    """The server behind ``look``, with everything on the menus that the example graphs name."""
    assert look.comfyui is not None
    version = look.comfyui.version
    if version not in servers:
        for other in servers.values():
            other.stop()
        servers.clear()
        base = tmp_path_factory.mktemp(f"canvas-{version}")
        (base / "input").mkdir()
        stock(base, tiny_checkpoint)
        servers[version] = start(look.comfyui.path, look.comfyui.python, base)
    return servers[version]


@pytest.fixture(scope="session")
def frontend(look: Look, canvas_server: Server) -> Iterator[Frontend]:
    """The open frontend."""
    with opened(canvas_server.url, width=2400, height=1350, vue=look.vue, light=look.light) as page:
        yield page
