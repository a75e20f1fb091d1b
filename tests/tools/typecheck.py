"""Runs mypy --strict on the whole tree: once for the programs and tests, once for the nodes.

ComfyUI imports the pack as a package under the checkout's folder name, whatever that is, and nodes/ reaches trainer/ by
relative imports. mypy gets the same view through a link named ``animelora``; without the right to make links, through a copy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "pyproject.toml"
PACKAGE = "animelora"


def main() -> int:
    """Type-check with both runs at once; the exit status is the worse one."""
    with tempfile.TemporaryDirectory(prefix="animelora-types-") as folder:
        _alias(Path(folder) / PACKAGE)
        with ThreadPoolExecutor() as pool:
            tree = pool.submit(_mypy, [], {}, [])
            pack = pool.submit(
                _mypy,
                ["--follow-imports=silent", "-p", f"{PACKAGE}.nodes", "-m", PACKAGE],
                {"MYPYPATH": folder},
                [(str(Path(folder) / PACKAGE) + os.sep, "")],
            )
    statuses = []
    for run in (tree, pack):
        status, text = run.result()
        print(text, end="")
        statuses.append(status)
    return max(statuses)


def _alias(place: Path) -> None:
    try:
        place.symlink_to(ROOT, target_is_directory=True)
    except OSError:  # Windows without developer mode
        place.mkdir()
        shutil.copy2(ROOT / "__init__.py", place)
        for name in ("nodes", "trainer", "demo"):
            shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors", "*.png", "*.jpg"))


def _mypy(arguments: list[str], environment: dict[str, str], replacements: list[tuple[str, str]]) -> tuple[int, str]:
    """The exit status and the output."""
    cache = ROOT / ".mypy_cache" / ("pack" if arguments else "tree")
    command = [sys.executable, "-m", "mypy", "--config-file", str(CONFIG), "--cache-dir", str(cache), *arguments]
    # -p and -m look modules up: from the repository root they would find the plain tree, not the package
    folder = environment.get("MYPYPATH", str(ROOT))
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, encoding="utf-8", errors="replace"
    )
    text = done.stdout + done.stderr
    for old, new in [*replacements, (PACKAGE + os.sep, "")] if arguments else replacements:
        text = text.replace(old, new)
    return done.returncode, text


if __name__ == "__main__":
    sys.exit(main())
