"""One server for each ComfyUI, shared by all tests of a session, with a folder of pictures and two random checkpoints."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFilter

from tests.conftest import ComfyUI, find_comfyui
from tests.server.comfy_server import Server, start

TINY = "tiny-sd15.safetensors"
FULL = "random-sd15.safetensors"


def comfyuis() -> list[ComfyUI]:
    """Every ComfyUI to test with: COMFYUI_PATHS (separated as PATH is), else the one that the other tests use and ``~/ComfyUI-*``."""
    named = os.environ.get("COMFYUI_PATHS")
    newest = find_comfyui()
    if named:
        folders = [Path(part) for part in named.split(os.pathsep) if part]
    else:
        folders = [newest.path] if newest else []
        if "COMFYUI_PATH" not in os.environ:
            folders += sorted(Path.home().glob("ComfyUI-*"))
    program = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    found = []
    for folder in folders:
        pythons = [path for name in ("venv", ".venv") if (path := folder / name / program).is_file()]
        if newest is not None and folder == newest.path:
            found.append(newest)
        elif (folder / "main.py").is_file() and (pythons or named):
            found.append(ComfyUI(folder, pythons[0] if pythons else Path(sys.executable)))
    return found


_FOUND = comfyuis()
_PLACES: list[ComfyUI | None] = [*_FOUND] or [None]


@pytest.fixture(scope="session", params=_PLACES, ids=[each.version for each in _FOUND] or ["none"])
def server(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_checkpoint: Path,
    full_checkpoint: Path,
    quick_trainer: Callable[[Path], Path],
) -> Iterator[Server]:
    """A running server with the pack in it."""
    if request.param is None:
        request.getfixturevalue("comfyui")  # skips, and says why
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
    link(full_checkpoint, base / "models" / "checkpoints" / FULL)
    running = start(place.path, place.python, base, children=quick_trainer(place.python))
    running.thorough = place == _FOUND[0]  # one ComfyUI with the real size and every example, the others with a tiny model and some: time
    yield running
    running.stop()


def portrait(size: int, seed: int) -> Image.Image:
    """A face of ellipses on a gradient: a real picture in the sense that preparing it does not reject it."""
    picture = Image.linear_gradient("L").resize((size, size)).convert("RGB")
    pen = ImageDraw.Draw(picture)
    hue = (60 + 45 * seed) % 256
    pen.rectangle((0, 0, size // 3 + 5 * seed, size), fill=(hue, 90, 200 - hue // 2))
    pen.ellipse((size * 0.2, size * 0.1, size * 0.8, size * 0.95), fill=(235, 200 - 9 * seed, 170))
    pen.pieslice((size * 0.15, size * 0.02, size * 0.85, size * 0.7), 180, 360 - 20 * (seed % 4), fill=(hue, 40 + 13 * seed, 60))
    for side in (0.37, 0.63):
        pen.ellipse((size * (side - 0.06), size * 0.45, size * (side + 0.06), size * 0.57), fill="white", outline="black")
        pen.ellipse((size * (side - 0.03), size * 0.48, size * (side + 0.03), size * 0.55), fill=(20, 60 + 15 * seed, 90))
    return picture.filter(ImageFilter.GaussianBlur(0.6))


def link(source: Path, target: Path) -> None:
    """A file at ``target`` without copying two gigabytes."""
    try:
        target.symlink_to(source)
    except OSError:
        os.link(source, target)
