"""What the registry, ComfyUI-Manager and run.py read agrees with the code."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import trainer

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
# Their own Python files name the distribution that pip knows.
DISTRIBUTIONS = {"PIL": "pillow", "huggingface_hub": "huggingface-hub"}
# torch and numpy belong to ComfyUI's installation; the rest are extras, imported only where they are used.
NOT_REQUIRED = {"torch", "numpy", "onnxruntime", "bitsandbytes", "xformers", "triton", "wandb", "pillow_avif"}


def project() -> dict[str, Any]:
    data: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return data


def required() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def imported_distributions(*folders: str) -> set[str]:
    names: set[str] = set()
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names.update(alias.name.split(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                    names.add(node.module.split(".")[0])
    ours = {path.stem for path in (ROOT / "trainer").rglob("*.py")} | {"trainer", "demo"}
    return {DISTRIBUTIONS.get(name, name) for name in names - set(sys.stdlib_module_names) - ours}


def test_pyproject_and_requirements_name_the_same_dependencies() -> None:
    assert [line.replace("'", '"') for line in project()["dependencies"]] == required()


def test_the_version_is_the_trainers() -> None:
    assert project()["version"] == trainer.__version__


def test_everything_the_trainer_imports_is_required() -> None:
    names = {re.split(r"[><=;\s]", line)[0] for line in required()}
    assert imported_distributions("trainer", "demo") - NOT_REQUIRED - names - {"tomllib"} == set()


def test_requirements_have_lower_bounds_only_and_leave_torch_alone() -> None:
    for line in required():
        specifier = line.split(";")[0]
        assert re.fullmatch(r"[a-z0-9-]+>=[0-9.]+\s*", specifier), line
        assert not specifier.startswith(("torch", "numpy"))


@pytest.mark.slow
def test_the_registrys_own_validation_passes(tmp_path: Path) -> None:
    home = dict.fromkeys(("HOME", "USERPROFILE", "APPDATA", "XDG_CONFIG_HOME"), str(tmp_path))  # it keeps its settings there
    command = [sys.executable, "-m", "comfy_cli", "--skip-prompt", "--no-enable-telemetry", "node", "validate"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", env=os.environ | home | {"PYTHONUTF8": "1"})
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "Warning" not in output, output
    assert "All validation checks passed" in output, output
