"""The two commands: ``python run.py demo`` and ``python run.py test``. Needs nothing but Python 3.10 or newer.

It creates a virtual environment in ``.venv`` beside this file, installs the command's requirements into it, and runs the command
there. Nothing outside that folder is changed. The second time everything is in place and the command starts at once.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "animelora.json"

CPU_TORCH = "torch==2.13.0"  # the release that the figures in this repository were measured with
CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # on Linux, PyPI's own build carries gigabytes of CUDA libraries
CUDA_INDEX = "https://download.pytorch.org/whl/cu128"  # on Windows, PyPI's own build has no CUDA

QUICK = ["-m", "not slow and not seconds and not comfyui and not browser"]
ALL = ["--long"]  # an option of tests/conftest.py
NOT_RUN = 77  # exit status of a check that this machine cannot do


class SetupError(Exception):
    """A problem that the user has to solve before a command can run."""


def main() -> int:
    """Parse the command line, set the environment up, run the command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # redirected on Windows, output has a code page that lacks most characters
    parser = argparse.ArgumentParser(prog="python run.py", description=(__doc__ or "").split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="demo|test")
    demo = commands.add_parser("demo", help="train a LoRA on drawn portraits with the embedded base model and show what it does")
    demo.add_argument("--out", metavar="DIR", help="folder for the results")
    test = commands.add_parser("test", help="lint, type-check and test everything; further arguments go to pytest")
    size = test.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="leave out slow tests and those that need a real ComfyUI")
    size.add_argument("--all", action="store_true", help="add the long tests, and the unit tests in a Windows Python as far as possible")
    args, rest = parser.parse_known_args()
    try:
        install(tests=args.command == "test")
        if args.command == "demo":
            # resolved in the caller's folder, since the demo runs in this one
            where = ["--out", os.path.abspath(args.out)] if args.out else []
            return subprocess.call([str(PYTHON), "-m", "trainer", "demo", *where, *rest], cwd=ROOT)
        selection = QUICK if args.quick else ALL if args.all else []
        status = run_tests([*selection, *rest])
        if args.all:
            run_best_effort()
        return status
    except SetupError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def run_tests(pytest_arguments: list[str]) -> int:
    """Every check, also after one has failed; the exit status is 0 only if all passed."""
    checks = {
        "ruff check": [str(PYTHON), "-m", "ruff", "check", "."],
        "imports": [str(PYTHON), "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        "mypy": [str(PYTHON), str(Path("tests", "tools", "typecheck.py"))],
        "pytest": [str(PYTHON), "-m", "pytest", "--durations=10", *side_by_side(), *pytest_arguments],
    }
    results = []
    for name, command in checks.items():
        say(name)
        started = time.monotonic()
        status = subprocess.call(command, cwd=ROOT)
        results.append((name, status, time.monotonic() - started))
    say("summary")
    for name, status, seconds in results:
        print(f"{name:<12} {'ok' if status == 0 else f'FAILED (exit status {status})'}, {seconds:.0f} s")
    return 1 if any(status for _, status, _ in results) else 0


def run_best_effort() -> None:
    """Run what only some machines can run. Its result is printed and does not change the exit status."""
    say("best effort: the unit tests in a Windows Python under Wine (docs/windows.md); the result above does not depend on it")
    code_page = ["--code-page", "932", str(Path("tests", "unit", "commands", "test_code_page.py"))]
    for name, arguments in {"Windows": [], "Windows, code page 932": code_page}.items():
        status = subprocess.call([str(PYTHON), str(Path("tests", "tools", "windows.py")), *arguments], cwd=ROOT)
        outcome = {0: "ok", NOT_RUN: "NOT RUN, for the reason above"}.get(status, f"FAILED (exit status {status})")
        say(f"best effort: {name}: {outcome}")


def side_by_side() -> list[str]:
    """pytest-xdist with a worker more than cores, since tests often wait for a server or a browser, and four at most for their memory.

    A later ``-n 0`` switches it off.
    """
    cores = os.cpu_count() or 1
    return ["-n", str(min(cores + 1, 4)), "--dist", "loadscope", "--no-loadscope-reorder"] if cores > 1 else []


def install(*, tests: bool) -> None:
    """Install what the requirement files list into ``.venv``, unless the stamp in it says that they are installed."""
    if sys.version_info < (3, 10):  # noqa: UP036 - older versions run this file, too, and get this error
        raise SetupError(f"AnimeLoRA needs Python 3.10 or newer; this is {sys.version.split()[0]}. Start it with a newer one.")
    gpu = has_nvidia_gpu()
    base = {"python": sys.version, "gpu": gpu}
    wanted = {**base, "requirements": digest("requirements.txt"), "tests": digest("pyproject.toml") if tests else ""}
    stamp = read_stamp()
    if PYTHON.is_file() and covers(stamp, wanted):
        return
    if not PYTHON.is_file() or any(stamp.get(key) != value for key, value in base.items()):
        make_environment()
        stamp = {}
    if "torch" not in stamp:
        install_torch(gpu)
        stamp = {**base, "torch": True}
        write_stamp(stamp)
    say("installing what the pack imports")
    pip("-r", "requirements.txt")
    if tests:
        say("installing what the tests need")
        pip(*test_requirements())
    write_stamp({**stamp, **wanted, "tests": wanted["tests"] or stamp.get("tests", "")})


def make_environment() -> None:
    """Create ``.venv`` with the Python that runs this file."""
    say(f"creating a virtual environment in {VENV}")
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        raise SetupError(
            f"This Python has no {' and no '.join(missing)} module. On Debian and Ubuntu: sudo apt install python3-venv. "
            "Elsewhere, use a Python from python.org."
        )
    done = subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise SetupError(f"The virtual environment could not be made:\n{(done.stdout + done.stderr).strip()}")


def install_torch(gpu: bool) -> None:
    """Install a CUDA build if there is an NVIDIA GPU, else the pinned CPU build."""
    if gpu:
        say("installing PyTorch for the GPU (2 to 3 GB, once)")
        pip("torch", *(["--index-url", CUDA_INDEX] if os.name == "nt" else []))
        return
    say("installing PyTorch for the CPU (about 200 MB, once)")
    if not sys.platform.startswith("linux") or pip_finds_locally(CPU_TORCH):
        pip(CPU_TORCH)
        return
    try:
        pip(CPU_TORCH, "--index-url", CPU_INDEX, "--timeout", "15", "--retries", "1")
    except SetupError:
        print("PyTorch's own index does not answer; installing the larger build from PyPI.")
        pip(CPU_TORCH)


def pip_finds_locally(requirement: str) -> bool:
    """Whether pip's settings name a folder of wheels (find-links) that contains ``requirement``."""
    command = [str(PYTHON), "-m", "pip", "install", "--dry-run", "--no-deps", "--no-index", "--quiet", requirement]
    return subprocess.run(command, capture_output=True, cwd=ROOT).returncode == 0


def test_requirements() -> list[str]:
    """The requirements of pyproject.toml's extra ``test``. Read by ``.venv``'s Python, which always has a TOML reader."""
    code = (
        "import sys, json\n"
        "tomllib = __import__('tomllib' if sys.version_info >= (3, 11) else 'tomli')\n"
        "data = tomllib.load(open('pyproject.toml', 'rb'))\n"
        "print(json.dumps(data['project']['optional-dependencies']['test']))\n"
    )
    done = subprocess.run([str(PYTHON), "-c", code], cwd=ROOT, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise SetupError(f"pyproject.toml cannot be read:\n{done.stderr.strip()}")
    return [str(line) for line in json.loads(done.stdout)]


def pip(*arguments: str) -> None:
    """Run ``pip install`` and show its progress. Raises SetupError with pip's last lines and a hint if it fails."""
    command = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    assert process.stdout is not None
    lines: list[str] = []
    with process.stdout:
        for line in process.stdout:
            lines.append(line.rstrip())
            if line.lstrip().startswith(("Downloading", "Building", "Installing collected")):
                print(f"  {line.strip()[:110]}", flush=True)
    if process.wait():
        tail = "\n".join(f"  {line}" for line in lines[-15:])
        raise SetupError(f"pip could not install {' '.join(arguments)[:200]}:\n{tail}\n{hint(' '.join(lines))}")


def hint(output: str) -> str:
    """Advice for pip's most frequent failures."""
    if "No space left" in output:
        return "The disk is full: the environment needs about 3 GB, with CUDA about 8 GB."
    if "onnection" in output or "resolution" in output or "timed out" in output:
        return "The package index cannot be reached. Check the network, or set PIP_INDEX_URL or PIP_FIND_LINKS to one that can."
    if "No matching distribution" in output:
        return f"There may be no build for Python {sys.version.split()[0]} on this system; Python 3.10 to 3.13 are tested."
    return "Delete the folder .venv and try again; if it fails again, the lines above say why."


def has_nvidia_gpu() -> bool:
    """Whether ``nvidia-smi`` finds a GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    try:
        done = subprocess.run([program, "-L"], capture_output=True, text=True, errors="replace", timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and "GPU" in done.stdout


def covers(stamp: dict[str, object], wanted: dict[str, object]) -> bool:
    """Whether an environment with ``stamp`` has everything in ``wanted``. Empty values are not required."""
    return all(value == "" or stamp.get(key) == value for key, value in wanted.items())


def digest(name: str) -> str:
    """SHA-256 of a file of the checkout, independent of its line endings."""
    return hashlib.sha256((ROOT / name).read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def read_stamp() -> dict[str, object]:
    """What is installed in ``.venv``; empty if no installation was completed."""
    try:
        data = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def write_stamp(stamp: dict[str, object]) -> None:
    """Record what is installed."""
    STAMP.write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")


def say(text: str) -> None:
    """Print a heading."""
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
