"""SECURITY.md's guarantees about the source: network access, started programs, routes."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PACK = [ROOT / "__init__.py", *(path for folder in ("trainer", "nodes", "demo") for path in sorted((ROOT / folder).rglob("*.py")))]
NETWORK = re.compile(
    r"(aiohttp|ftplib|http\.(client|server)|httpx|huggingface_hub|requests|smtplib|socket(server)?|urllib\.request|urllib3|wandb|websockets?)\b"
)
STARTS = re.compile(
    r"(subprocess\.\w+|multiprocessing\.(spawn|Process)|os\.(system|popen|exec\w*|spawn\w*|posix_spawn\w*|startfile)|pty\.\w+)"
)
_QUOTING = "subprocess.list2cmdline"


def nodes_of(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imported(path: Path) -> set[str]:
    """The modules that a file imports, by statement or by name."""
    found = set()
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and isinstance(node.args[0], ast.Constant):
            found.add(str(node.args[0].value))
    return found


def started(path: Path) -> set[str]:
    """What a file calls that starts a program."""
    names = {ast.unparse(node.func) for node in nodes_of(path) if isinstance(node, ast.Call)}
    return {name for name in names if STARTS.fullmatch(name)} - {_QUOTING}


def where(found: dict[Path, set[str]]) -> dict[str, set[str]]:
    return {path.relative_to(ROOT).as_posix(): names for path, names in found.items() if names}


def test_nothing_talks_to_a_network_but_the_download_of_a_base_wandb_and_comfyuis_own_server() -> None:
    used = {path: {match[1] for name in imported(path) if (match := NETWORK.match(name))} for path in PACK}
    assert where(used) == {
        "nodes/shared/history/history_routes.py": {"aiohttp"},  # the words for answers of ComfyUI's server
        "nodes/shared/routes.py": {"aiohttp"},
        "trainer/families/open_checkpoint.py": {"huggingface_hub"},
        "trainer/training/monitoring/trackers.py": {"wandb"},
    }


def test_wandb_is_on_no_node() -> None:
    widgets = (ROOT / "nodes" / "shared" / "widgets" / "training_widgets.py").read_text(encoding="utf-8")
    assert '"output.wandb"' in widgets.partition("NOT_ON_A_NODE")[2]


def test_programs_are_started_by_the_launcher_and_the_making_of_the_demo_base_alone() -> None:
    assert where({path: started(path) for path in PACK}) == {
        "demo/recipe/drawn_images.py": {"subprocess.Popen"},
        "demo/recipe/train_base.py": {"multiprocessing.spawn"},
        "trainer/launch/launcher.py": {"subprocess.Popen"},
    }


def test_routes_answer_ask_a_training_keep_a_saved_lora_or_delete_a_run() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "nodes").rglob("*.py"))
    assert set(re.findall(r"routes\.(\w+)\(", text)) == {"get", "post"}
    # one asks an active training for one of six things, one copies a saved LoRA into the folder of LoRAs, one only answers, two delete
    asking = {"/animelora/runs/{run}/control", "/animelora/runs/{run}/keep", "/animelora/next_run"}
    asking |= {"/animelora/runs/{run}/delete", "/animelora/runs/{run}/delete_step"}
    assert set(re.findall(r"routes\.post\(\"([^\"]+)", text)) == asking
    assert "add_routes" not in text and "add_route(" not in text


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="NOT CHECKED: ruff is not installed")
@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ("S102", "exec('x')"),
        ("S301", "import pickle\npickle.loads(b'')"),
        ("S307", "eval('x')"),
        ("S602", "import subprocess\nsubprocess.run('x', shell=True)"),
        ("S605", "import os\nos.system('x')"),
        ("S606", "import os\nos.execv('x', [])"),
    ],
)
def test_ruff_rejects_code_that_runs_text_or_a_shell(rule: str, code: str) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--quiet", "--output-format=concise", "--stdin-filename", "trainer/new.py", "-"]
    done = subprocess.run(command, cwd=ROOT, input=f"{code}\n", capture_output=True, text=True, encoding="utf-8", check=False)
    assert rule in done.stdout, done.stdout + done.stderr


def test_no_file_of_the_pack_holds_code_that_nobody_can_read() -> None:
    """No long lines, as minified code has, no long texts without spaces, as encoded code is, and no code that is decoded."""
    scripts = [path for path in sorted((ROOT / "web").rglob("*")) if path.suffix in (".js", ".mjs", ".ts")]
    assert scripts
    for path in [*PACK, *scripts]:
        text = path.read_text(encoding="utf-8")
        assert max(map(len, text.splitlines()), default=0) <= 200, path
        assert not re.search(r"[\w+/=\\]{200}", text), path
        assert not re.search(r"(?<!\.)\b(exec|eval|marshal\.loads|Function)\(", text), path


def test_files_that_the_guarantees_refer_to_exist() -> None:
    named = re.findall(r"`((?:trainer|nodes|tests|demo)/[\w/]+\.py)`", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []
