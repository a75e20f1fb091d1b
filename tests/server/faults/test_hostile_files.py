"""Hostile files in the folders that ComfyUI lists, opened through every node that can open them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.comfy_server import PromptFailed, PromptRefused, Server
from tests.server.files import TINY, portrait
from tests.server.graphs import Graph, defaults, loader, node, prepare, train_settings
from tests.tools import hostile

WEIGHTS = sorted(hostile.weights(Path()))
SOME = ("a pickle.safetensors", "deep.safetensors", "device.safetensors", "new pickle.ckpt", "old pickle.pt", "overlap.safetensors")
PREFIX = "AnimeLoRA_"


@pytest.fixture(scope="module")
def spoiled(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Install every hostile file as a checkpoint, a LoRA and a run's saved LoRA; the file that unpickling one would create."""
    mark = tmp_path_factory.mktemp("mark") / "it ran"
    models, run = server.base / "models", server.base / "output" / "animelora" / "runs" / "spoiled-0123456789abcdef"
    made = []
    for name, make in hostile.weights(mark).items():
        for place in (models / "checkpoints" / name, models / "loras" / name):
            make(place)
            made.append(place)
        if name == "overlap.safetensors":
            saved = run / "checkpoints" / "step-000001" / "spoiled-000001.safetensors"
            saved.parent.mkdir(parents=True)
            make(saved)
            (run / "events.jsonl").write_text("[" * 100_000 + "\n\x00\xff{}\n", encoding="utf-8")
    yield mark
    for place in made:
        if place.is_dir():
            place.rmdir()
        else:
            place.unlink()


def users(server: Server, name: str) -> dict[str, Graph]:
    """A graph for each node and menu that lists ``name``, with that entry chosen. New nodes are included automatically."""
    found: dict[str, Graph] = {}
    sources = {"MODEL": ["base", 0], "CLIP": ["base", 1], "VAE": ["base", 2]}
    for kind, described in server.get("/object_info").items():
        if not kind.startswith(PREFIX):
            continue
        inputs = described["input"].get("required", {}) | described["input"].get("optional", {})
        for field, spec in inputs.items():
            menu = spec[0] if isinstance(spec[0], list) else (spec[1] if len(spec) > 1 else {}).get("options", [])
            chosen = name
            if field == "loras" and (server.base / "models" / "loras" / name).is_file():  # LoRA Stack has rows instead of a menu
                chosen = json.dumps([{"on": True, "name": name, "strength": 1.0}])
            elif name not in menu:
                continue
            linked = {other: sources[of[0]] for other, of in inputs.items() if not isinstance(of[0], list) and of[0] in sources}
            values = {**defaults(described), **linked, field: chosen}
            graph: Graph = {
                "base": loader(TINY, full=False),
                "tried": node(kind, **values),
                "show": node("PreviewAny", source=["tried", 0]),
            }
            settings = train_settings(checkpoint=TINY, name="from harm", max_steps=1, validate_every=0) | {"dataset": ["prep", 0]}
            if kind == f"{PREFIX}TrainLora":
                graph |= {"prep": prepare(), "tried": node(kind, **(settings | {field: name}))}
            elif described["output"][0] == "ANIMELORA_TRAIN_OPTIONS":  # it opens no file itself
                graph |= {"prep": prepare(), "train": node(f"{PREFIX}TrainLora", **settings, options=["tried", 0])}
            found[f"{kind} {field}"] = graph
    return found


def test_hostile_weights_are_refused_by_every_node_that_lists_them(server: Server, spoiled: Path) -> None:
    seen: set[str] = set()
    for name in WEIGHTS if server.thorough else [name for name in WEIGHTS if name in SOME]:
        for title, graph in users(server, name).items():
            seen.add(title)
            try:
                server.run(graph, 120)
            except (PromptFailed, PromptRefused) as error:
                refusal = error
            else:
                pytest.fail(f"{title} took {name}")
            message = str(refusal)
            assert "Traceback" not in message, (title, name, message)
            if isinstance(refusal, PromptFailed):
                assert refusal.node.startswith(PREFIX), (title, name, message)
                assert name in message or "LoRA" in message or "checkpoint" in message, (title, name, message)
                assert "\n" in refusal.message, f"no hint: {title} {name} {message}"
    assert not spoiled.exists(), "a pickle ran"
    assert not server.children()
    assert {f"{PREFIX}LoadDemoBase checkpoint", f"{PREFIX}TrainLora checkpoint", f"{PREFIX}LoadLora lora_name"} <= seen
    assert {f"{PREFIX}ExportLora lora_name", f"{PREFIX}LoraStack loras", f"{PREFIX}NetworkOptions continue_from"} <= seen
    server.run({"base": loader(TINY, full=False), "show": node("PreviewAny", source=["base", 1])})


def test_hostile_run_folder_is_refused_by_nodes_and_routes(server: Server, spoiled: Path) -> None:
    name = "spoiled-0123456789abcdef"
    graphs = users(server, name)
    assert f"{PREFIX}EpochCompare run" in graphs
    for title, graph in graphs.items():
        with pytest.raises((PromptFailed, PromptRefused)) as caught:
            server.run(graph, 120)
        assert "Traceback" not in str(caught.value), title
    assert server.get(f"/animelora/runs/{name}")["step"] is None


@pytest.mark.skipif(os.name == "nt", reason="NOT CHECKED: devices and pipes are POSIX")
def test_hostile_images_archives_and_links_are_skipped_by_name(server: Server) -> None:
    folder, secret = server.base / "input" / "harm", server.base.parent / "secret.png"
    folder.mkdir()
    portrait(90, 3).save(folder / "good.png")
    portrait(90, 7).save(secret)
    (folder / "vast.png").write_bytes(hostile.vast_picture())
    (folder / "script.png").write_bytes(hostile.eps())
    (folder / "tile.tif").write_bytes(hostile.tiled_tiff(8000))
    (folder / "scans.jpg").write_bytes(hostile.many_scans(1000))
    (folder / "link.png").symlink_to(secret)
    (folder / "inside.png").symlink_to(server.base / "input" / "portraits" / "portrait 1.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.png")
    secret.with_suffix(".txt").write_text("a secret", encoding="utf-8")
    (folder / "good.txt").symlink_to(secret.with_suffix(".txt"))
    archive = server.base / "input" / "harm.zip"
    archive.write_bytes(hostile.slipping_zip((folder / "good.png").read_bytes()))
    try:
        report = server.run({"prep": prepare("harm", trigger_word="harmless")})["prep"]["text"][0]
        assert "2 images" in report
        for name in ("vast.png", "script.png", "tile.tif", "scans.jpg", "link.png", "zero.png", "pipe.png", "good.txt"):
            assert name in report
        captions = [path.read_text(encoding="utf-8") for path in (server.base / "output" / "animelora" / "datasets").rglob("*.txt")]
        assert not any("secret" in caption for caption in captions)
        report = server.run({"prep": prepare("harm.zip", trigger_word="zipped")})["prep"]["text"][0]
        assert "1 image" in report
        for name in ("../escaped.png", "link.png", "bomb.bmp"):
            assert name in report
        assert not list(server.base.parent.rglob("escaped.png"))
    finally:
        for path in [*folder.iterdir(), archive]:
            path.unlink()
        folder.rmdir()
