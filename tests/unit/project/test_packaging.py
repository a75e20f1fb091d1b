"""What the registry, ComfyUI-Manager and run.py read agrees with the code."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import trainer

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[3]
# Their own Python files name the distribution that pip knows.
DISTRIBUTIONS = {"PIL": "pillow", "huggingface_hub": "huggingface-hub"}
# torch and numpy belong to ComfyUI's installation; the rest are extras, imported only where they are used.
NOT_REQUIRED = {"torch", "numpy", "onnxruntime", "bitsandbytes", "xformers", "triton", "wandb", "pillow_avif"}


def project() -> dict[str, Any]:
    data: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return data


def registry() -> dict[str, Any]:
    data: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["comfy"]
    return data


def required() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def imported_distributions(*folders: str) -> set[str]:
    names: set[str] = set()
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            names |= imported_roots(path)
    ours = {path.stem for path in (ROOT / "trainer").rglob("*.py")} | {"trainer", "demo"}
    return {DISTRIBUTIONS.get(name, name) for name in names - set(sys.stdlib_module_names) - ours}


def test_pyproject_and_requirements_name_the_same_dependencies() -> None:
    assert [line.replace("'", '"') for line in project()["dependencies"]] == required()


def test_the_version_is_the_trainers() -> None:
    assert project()["version"] == trainer.__version__


@pytest.mark.parametrize(("field", "ratio", "widest"), [("Icon", 1.0, 400), ("Banner", 21 / 9, 2100)])
def test_the_registrys_images_are_in_the_repository_and_have_the_shape_it_shows(field: str, ratio: float, widest: int) -> None:
    path = registry()[field].partition("/main/")[2]
    with Image.open(ROOT / path) as image:
        assert image.format in ("PNG", "JPEG", "GIF")
        assert image.width / image.height == ratio
        assert image.width <= widest


def test_everything_the_trainer_imports_is_required() -> None:
    names = {re.split(r"[><=;\s]", line)[0] for line in required()}
    assert imported_distributions("trainer", "demo") - NOT_REQUIRED - names - {"tomllib"} == set()


def test_requirements_have_lower_bounds_only_and_leave_torch_alone() -> None:
    for line in required():
        specifier = line.split(";")[0]
        assert re.fullmatch(r"[a-z0-9-]+>=[0-9.]+\s*", specifier), line
        assert not specifier.startswith(("torch", "numpy"))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("comfy_cli") is None, reason="NOT CHECKED: comfy-cli is not installed")
def test_the_registrys_own_validation_passes(tmp_path: Path) -> None:
    home = dict.fromkeys(("HOME", "USERPROFILE", "APPDATA", "XDG_CONFIG_HOME"), str(tmp_path))  # it keeps its settings there
    command = [sys.executable, "-m", "comfy_cli", "--skip-prompt", "--no-enable-telemetry", "node", "validate"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", env=os.environ | home | {"PYTHONUTF8": "1"})
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "Warning" not in output, output
    assert "All validation checks passed" in output, output


@pytest.mark.skipif(shutil.which("git") is None, reason="NOT CHECKED: git lists what is packed, and it is not installed")
def test_an_installation_from_the_registry_has_what_it_runs_and_no_tests() -> None:
    """comfy-cli packs what git tracks, less what .comfyignore names: whole folders and files of the top level."""
    patterns = [line for line in (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert all(pattern.startswith("/") and (ROOT / pattern.strip("/")).exists() for pattern in patterns)
    left_out = tuple(pattern[1:] for pattern in patterns)
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    installed = [name for name in tracked if not name.startswith(left_out)]
    parts = {name.split("/")[0] for name in installed}
    assert parts >= {"__init__.py", "nodes", "trainer", "demo", "web", "locales", "workflows", "subgraphs"}
    assert parts >= {"pyproject.toml", "requirements.txt", "LICENSE", "README.md"}
    assert parts.isdisjoint({"tests", "benchmarks", "random_checkpoints", ".ci", ".github"})
    assert {"docs/training.md", "docs/datasets.md"} <= set(installed)  # error messages name them
    for name in installed:
        if name.endswith(".py"):
            roots = imported_roots(ROOT / name)
            assert roots.isdisjoint({"tests", "benchmarks", "random_checkpoints"}), name


def imported_roots(path: Path) -> set[str]:
    """The first part of each module that a file imports by its full name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found
