"""One server for each ComfyUI, shared by all tests of a session, with a folder of images and two random checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.server.comfy_server import Server, start
from tests.server.files import FULL, TINY, link, portrait
from tests.tools.comfyui import ComfyUI, find_comfyuis

# tests and files that also run on older ComfyUIs without --long; the newest ComfyUI runs everything
ON_EVERY_COMFYUI = {"test_chain_runs_from_folder_to_image_and_trains_once", "test_old_workflows.py", "test_workflows.py"}
_FOUND = find_comfyuis()
_PLACES: list[ComfyUI | None] = [*_FOUND] or [None]


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark the tests as long that older ComfyUIs repeat only with ``--long``."""
    place = item.callspec.params.get("server") if isinstance(item, pytest.Function) and hasattr(item, "callspec") else None
    if not isinstance(place, ComfyUI) or place == _FOUND[0] or not isinstance(item, pytest.Function):
        return
    if not {item.path.name, item.originalname} & ON_EVERY_COMFYUI:
        item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session", params=_PLACES, ids=[each.version for each in _FOUND] or ["none"])
def server(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_checkpoint: Path,
    quick_trainer: Callable[[Path], Path],
    long_form: bool,
) -> Iterator[Server]:
    """A running server with the pack in it."""
    if request.param is None:
        request.getfixturevalue("comfyui")  # skips with the reason
    place: ComfyUI = request.param
    base = tmp_path_factory.mktemp(f"comfyui-{place.version}")
    portraits = base / "input" / "portraits"
    portraits.mkdir(parents=True)
    for number in range(4):
        portrait(96 + 8 * number, number).save(portraits / f"portrait {number}.png")
    (portraits / "portrait 0.txt").write_text("girl with a round face", encoding="utf-8")
    portrait(72, 9).save(base / "input" / "photo.png")
    portrait(100, 10).resize((100, 75)).save(base / "input" / "odd.png")
    registered = tmp_path_factory.mktemp("elsewhere") / "my pictures"
    (registered / "cats").mkdir(parents=True)
    portrait(90, 20).save(registered / "cats" / "one.png")
    (base / "extra_model_paths.yaml").write_text(f"mine:\n  animelora_datasets: {registered}\n", encoding="utf-8")
    (base / "models" / "checkpoints").mkdir(parents=True, exist_ok=True)
    link(tiny_checkpoint, base / "models" / "checkpoints" / TINY)
    thorough = long_form and place == _FOUND[0]
    if thorough:
        link(request.getfixturevalue("full_checkpoint"), base / "models" / "checkpoints" / FULL)
    running = start(place.path, place.python, base, children=quick_trainer(place.python))
    running.thorough = thorough
    yield running
    running.stop()
