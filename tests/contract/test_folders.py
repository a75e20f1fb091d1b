"""Folders inside ComfyUI, with a stand-in for its ``folder_paths``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

Helper = Callable[[str], ModuleType]


@pytest.fixture
def folders(helper: Helper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``nodes/shared/files/folders.py`` of a ComfyUI whose models/loras is a link to another folder."""
    elsewhere, linked = tmp_path / "other disk" / "loras", tmp_path / "models" / "loras"
    (elsewhere / "styles").mkdir(parents=True)
    linked.parent.mkdir()
    try:
        linked.symlink_to(elsewhere, target_is_directory=True)
    except OSError:
        pytest.skip("links need a right that this user lacks")
    listed = ["mine.safetensors", str(Path("styles") / "ink.safetensors")]
    for name in listed:
        (elsewhere / name).touch()
    comfyui = SimpleNamespace(get_folder_paths=lambda kind: [str(linked)], get_filename_list=lambda kind: listed)
    if "folder_paths" not in sys.modules:
        monkeypatch.setitem(sys.modules, "folder_paths", comfyui)
    module = helper("files.folders")
    monkeypatch.setattr(module, "folder_paths", comfyui)
    return module


@pytest.mark.parametrize("name", ["mine.safetensors", str(Path("styles") / "ink.safetensors")])
@pytest.mark.parametrize("folder", ["models/loras", "other disk/loras"])
def test_listed_lora_finds_menu_entry_through_link_and_target(folders: ModuleType, tmp_path: Path, folder: str, name: str) -> None:
    assert folders.listed_lora(tmp_path / folder / name) == name


@pytest.mark.parametrize("place", ["models/loras/unlisted.safetensors", "output/mine.safetensors", "other disk/mine.safetensors"])
def test_unlisted_file_has_no_menu_entry(folders: ModuleType, tmp_path: Path, place: str) -> None:
    assert folders.listed_lora(tmp_path / place) == ""


def test_name_that_is_not_in_comfyuis_list_is_no_model(helper: Helper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer about the next run takes any graph, whose values no server has checked against its menus."""
    model = tmp_path / "model.safetensors"
    comfyui = SimpleNamespace(get_full_path=lambda kind, name: str(tmp_path / name), get_filename_list=lambda kind: [model.name])
    monkeypatch.setitem(sys.modules, "folder_paths", comfyui)
    base_models, folders = helper("files.base_models"), helper("files.folders")
    for module in (base_models, folders):
        monkeypatch.setattr(module, "folder_paths", comfyui)
    assert base_models.base_model_path("[diffusion_models] model.safetensors") == model
    for name in ("../secret.safetensors", "notes.txt", str(tmp_path / "x.safetensors"), ""):
        for kind in ("", "[diffusion_models] "):
            with pytest.raises(folders.UserError, match="not in ComfyUI's list"):
                base_models.base_model_path(kind + name)


def test_digest_covers_the_deepest_file_of_a_deep_tree(folders: ModuleType, tmp_path: Path) -> None:
    """The tree is deeper than Python's recursion limit."""
    if os.name == "nt":
        pytest.skip("NOT CHECKED: paths of Windows are short")
    top, depth = tmp_path / "top", 1200
    top.mkdir()
    for _ in range(depth):  # from the inside out, so that every path stays short
        (tmp_path / "new").mkdir()
        top.rename(tmp_path / "new" / "d")
        (tmp_path / "new").rename(top)
    before = folders.tree_digest(top)
    (top / ("d/" * depth) / "a.txt").write_text("x", encoding="utf-8")
    after = folders.tree_digest(top)
    for _ in range(depth):  # and back: pytest could not remove it
        (top / "d").rename(tmp_path / "new")
        top.rmdir()
        (tmp_path / "new").rename(top)
    assert after != before and (top / "a.txt").is_file()
