"""run.py installs what the machine needs, once, and reports what went wrong."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import run
from tests.tools.scheduling import worker_group

ROOT = Path(__file__).resolve().parents[3]
Calls = list[tuple[str, ...]]


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """run.py with an environment in tmp_path; records what pip is asked for instead of installing."""
    made: Calls = []
    venv = tmp_path / ".venv"
    monkeypatch.setattr(run, "VENV", venv)
    monkeypatch.setattr(run, "PYTHON", venv / "python")
    monkeypatch.setattr(run, "STAMP", venv / "animelora.json")
    monkeypatch.setattr(run, "pip", lambda *arguments: made.append(arguments))
    monkeypatch.setattr(run, "pip_finds_locally", lambda requirement: True)
    monkeypatch.setattr(run, "has_nvidia_gpu", lambda: False)
    monkeypatch.setattr(run, "test_requirements", lambda: ["pytest"])

    def make_environment() -> None:
        made.append(("venv",))
        venv.mkdir(exist_ok=True)
        (venv / "python").touch()

    monkeypatch.setattr(run, "make_environment", make_environment)
    return made


def test_a_fresh_checkout_gets_an_environment_torch_and_requirements(calls: Calls) -> None:
    run.install(tests=False)
    assert calls == [("venv",), (run.CPU_TORCH,), ("-r", "requirements.txt")]


def test_the_second_time_nothing_is_installed(calls: Calls) -> None:
    run.install(tests=True)
    calls.clear()
    run.install(tests=True)
    run.install(tests=False)
    assert calls == []


def test_testing_after_the_demo_adds_only_what_tests_need(calls: Calls) -> None:
    run.install(tests=False)
    calls.clear()
    run.install(tests=True)
    assert calls == [("-r", "requirements.txt"), ("pytest",)]
    calls.clear()
    run.install(tests=False)
    run.install(tests=True)
    assert calls == []


def test_new_requirements_are_installed_into_the_same_environment(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    run.install(tests=False)
    calls.clear()
    monkeypatch.setattr(run, "digest", lambda name: "another")
    run.install(tests=False)
    assert calls == [("-r", "requirements.txt")]


def test_an_interrupted_installation_continues_after_torch(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: str) -> None:
        if "-r" in arguments:
            raise run.SetupError("no network")
        calls.append(arguments)

    recording: Callable[..., None] = run.pip
    monkeypatch.setattr(run, "pip", broken)
    with pytest.raises(run.SetupError):
        run.install(tests=False)
    calls.clear()
    monkeypatch.setattr(run, "pip", recording)
    run.install(tests=False)
    assert calls == [("-r", "requirements.txt")]


@pytest.mark.parametrize(("key", "value"), [("python", "3.9.0"), ("gpu", True)])
def test_another_python_or_a_new_gpu_makes_the_environment_again(calls: Calls, key: str, value: object) -> None:
    run.install(tests=False)
    run.write_stamp({**run.read_stamp(), key: value})
    calls.clear()
    run.install(tests=False)
    assert calls[0] == ("venv",)
    assert (run.CPU_TORCH,) in calls


def test_a_gpu_gets_a_cuda_build(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    run.install_torch(gpu=True)
    monkeypatch.setattr("run.os.name", "nt")
    run.install_torch(gpu=True)
    cuda = ("torch", "--index-url", run.CUDA_INDEX)
    assert calls == [cuda if sys.platform == "win32" else ("torch",), cuda]


def test_without_a_gpu_linux_takes_the_cpu_index_and_pypi_when_that_is_down(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: str) -> None:
        calls.append(arguments)
        if run.CPU_INDEX in arguments:
            raise run.SetupError("cannot be reached")

    monkeypatch.setattr("run.sys.platform", "linux")
    monkeypatch.setattr(run, "pip_finds_locally", lambda requirement: False)
    monkeypatch.setattr(run, "pip", unreachable)
    run.install_torch(gpu=False)
    assert [call[:3] for call in calls] == [(run.CPU_TORCH, "--index-url", run.CPU_INDEX), (run.CPU_TORCH,)]


def test_windows_and_macos_take_the_cpu_build_from_pypi(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("run.sys.platform", "win32")
    monkeypatch.setattr(run, "pip_finds_locally", lambda requirement: False)
    run.install_torch(gpu=False)
    assert calls == [(run.CPU_TORCH,)]


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this Python has no pip")
def test_a_failing_pip_shows_its_last_lines_and_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PYTHON", Path(sys.executable))
    with pytest.raises(run.SetupError) as caught:
        run.pip("--no-index", "surely-there-is-no-such-package")
    assert "surely-there-is-no-such-package" in str(caught.value)
    assert "Python 3.10 to 3.13" in str(caught.value)


@pytest.mark.parametrize(
    ("output", "word"),
    [
        ("OSError: [Errno 28] No space left on device", "disk"),
        ("NewConnectionError: Failed to establish a new connection", "network"),
        ("Temporary failure in name resolution", "network"),
        ("something else", ".venv"),
    ],
)
def test_hints_name_the_cause(output: str, word: str) -> None:
    assert word in run.hint(output)


def test_a_python_without_venv_gets_a_hint_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("run.importlib.util.find_spec", lambda name: None)
    with pytest.raises(run.SetupError, match="python3-venv"):
        run.make_environment()


def test_every_check_runs_and_one_failure_fails_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[list[str]] = []

    def call(command: list[str], **_: object) -> int:
        ran.append(command)
        return 1 if "ruff" in command else 0

    monkeypatch.setattr("run.subprocess.call", call)
    assert run.run_tests(["-k", "some"]) == 1
    assert any("ruff" in command for command in ran)
    assert any("typecheck.py" in part for part in ran[-2])
    assert ran[-1][-2:] == ["-k", "some"]
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.parametrize(("gate", "windows"), [(0, 0), (0, 1), (0, run.NOT_RUN), (1, 0)])
def test_all_runs_long_tests_and_then_windows_whose_result_does_not_count(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], gate: int, windows: int
) -> None:
    ran: list[str] = []

    def call(command: list[str], **_: object) -> int:
        ran.append(" ".join(command))
        return windows if "windows.py" in ran[-1] else gate

    monkeypatch.setattr("run.subprocess.call", call)
    monkeypatch.setattr(run, "install", lambda **_: None)
    monkeypatch.setattr("sys.argv", ["run.py", "test"])
    assert run.main() == gate
    assert len(ran) == 4 and not any("windows.py" in command for command in ran)
    assert "--long" not in ran[-1]
    monkeypatch.setattr("sys.argv", ["run.py", "test", "--all"])
    assert run.main() == gate
    assert all("windows.py" in command for command in ran[-2:]) and len(ran) == 10
    assert "--code-page 932" in ran[-1] and "--long" in ran[-3]
    output = capsys.readouterr().out
    assert "best effort" in output
    assert ("NOT RUN" in output) == (windows == run.NOT_RUN)


def test_quick_leaves_out_slow_tests_and_comfyui(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def call(command: list[str], **_: object) -> int:
        ran.append(command)
        return 0

    monkeypatch.setattr("run.subprocess.call", call)
    monkeypatch.setattr(run, "install", lambda **_: None)
    monkeypatch.setattr("sys.argv", ["run.py", "test", "--quick", "-k", "some"])
    assert run.main() == 0
    assert ran[-1][-4:] == ["-m", "not slow and not seconds and not comfyui and not browser", "-k", "some"]


@pytest.mark.parametrize(("cores", "workers"), [(1, None), (2, "3"), (64, "4"), (None, None)])
def test_tests_run_side_by_side_where_there_are_cores(monkeypatch: pytest.MonkeyPatch, cores: int | None, workers: str | None) -> None:
    monkeypatch.setattr("run.os.cpu_count", lambda: cores)
    chosen = run.side_by_side()
    assert (chosen[:2] == ["-n", workers]) if workers else chosen == []


def test_a_damaged_stamp_counts_as_none(calls: Calls) -> None:
    run.install(tests=False)
    run.STAMP.write_text("{", encoding="utf-8")
    assert run.read_stamp() == {}


def test_the_extra_is_read_from_pyproject(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PYTHON", Path(sys.executable))
    names = run.test_requirements()
    assert any(name.startswith("pytest") for name in names)


def test_help_works_with_nothing_installed() -> None:
    done = subprocess.run([sys.executable, "-S", "-I", str(ROOT / "run.py"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "demo" in done.stdout


@pytest.mark.parametrize(
    ("nodeid", "shared"),
    [
        ("tests/browser/test_panel.py::test_it[0.33.0 with frontend 1.58.1 dark-02_photo]", "ComfyUI 0.33.0"),
        ("tests/browser/test_old_workflows.py::test_it_loads[0.33.0 vue light-0.1.0 every_node]", "ComfyUI 0.33.0"),
        ("tests/server/using/test_lora.py::test_pixels_equal_those_of_the_core_loader[0.3.64]", "ComfyUI 0.3.64"),
        ("tests/contract/test_schemas.py::test_the_pack_loads[0.3.64]", "described 0.3.64"),
        ("tests/server/faults/test_soak.py::test_fifty_runs_leave_the_server_as_it_was", "tests/server/faults/test_soak.py"),
        ("tests/unit/training/parity/test_golden.py::test_the_first_losses[1.5]", "tests/unit/training/parity/test_golden.py"),
    ],
)  # fmt: skip
def test_tests_of_one_running_comfyui_stay_together(nodeid: str, shared: str) -> None:
    assert worker_group(nodeid) == shared
