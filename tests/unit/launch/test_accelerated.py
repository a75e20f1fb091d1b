"""accelerate's launcher inside the training process: the same environment as under ``accelerate launch``, and all cores."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools.parameters import mark_long
from tests.unit.training_helpers import configuration, train_here
from trainer.core import devices
from trainer.core.errors import UserError
from trainer.launch import launcher
from trainer.launch.accelerate_config import _TEMPLATE
from trainer.launch.prepared_run import prepare_run

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]
PROBE = f"""\
import json, os, sys
from pathlib import Path

sys.path[0] = {str(ROOT)!r}
if "--accelerate" in sys.argv:
    from trainer.launch.accelerated import launched

    if launched(Path(sys.argv[sys.argv.index("--accelerate") + 1]), Path(__file__), ["of", "the run"]):
        print("launcher left")
        sys.exit()
import torch

told = {{"environment": dict(os.environ), "threads": torch.get_num_threads(), "parent": os.getppid(), "arguments": sys.argv[1:]}}
print(json.dumps(told))
Path(__file__).with_name(f"told-{{os.getpid()}}.json").write_text(json.dumps(told))
"""


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    path = tmp_path / "probe.py"
    path.write_text(PROBE, encoding="utf-8")
    return path


def written(tmp_path: Path, **changes: object) -> Path:
    """The accelerate configuration of a run on the CPU."""
    values = {"kind": "NO", "processes": 1, "use_cpu": "true", **changes}
    path = tmp_path / "accelerate.yaml"
    path.write_text(_TEMPLATE.format(**values), encoding="utf-8")
    return path


def told_by(probe: Path, *command: object) -> list[dict[str, object]]:
    """What each process that ``command`` starts with ``probe`` reports of itself, in files: the output of two would be mixed."""
    subprocess.run([sys.executable, *map(str, command)], check=True, capture_output=True, timeout=300)
    paths = list(probe.parent.glob("told-*.json"))
    told = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    for path in paths:
        path.unlink()
    return told


@pytest.mark.parametrize("use_cpu", mark_long(["true", "false"], "false"))
def test_one_process_gets_the_environment_of_accelerate_launch(use_cpu: str, probe: Path, tmp_path: Path) -> None:
    config = written(tmp_path, use_cpu=use_cpu)
    (theirs,) = told_by(probe, "-m", "accelerate.commands.launch", "--config_file", config, probe)
    (ours,) = told_by(probe, probe, "--accelerate", config)
    mine, expected = ours["environment"], theirs["environment"]
    assert isinstance(mine, dict)
    assert isinstance(expected, dict)
    assert mine == expected
    assert {name for name in mine if name.startswith("ACCELERATE_")} >= {"ACCELERATE_USE_CPU", "ACCELERATE_MIXED_PRECISION"}
    assert mine["ACCELERATE_USE_CPU"] == use_cpu.title()
    assert ours["parent"] == os.getpid()  # there is no launcher in between


def test_several_processes_are_started_by_accelerate(probe: Path, tmp_path: Path) -> None:
    told = told_by(probe, probe, "--accelerate", written(tmp_path, kind="MULTI_GPU", processes=2))
    ranks = [each["environment"]["RANK"] for each in told if isinstance(each["environment"], dict)]
    assert sorted(ranks) == ["0", "1"]
    assert [each["arguments"] for each in told] == [["of", "the run"]] * 2


def test_garbage_collection_is_enabled_again_when_training_begins(shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path) -> None:
    gc.disable()  # as entry.py does
    try:
        trained = train_here(configuration(shallow_checkpoint, dataset_folder, tmp_path, {"training.max_steps": 1}))
        assert trained.status == 0
        assert gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()


@pytest.mark.parametrize("device", mark_long(["auto", "cpu"], "auto"))
@pytest.mark.parametrize("wish", [None, "1"])
def test_the_child_uses_a_thread_per_core_unless_the_user_sets_the_number(
    wish: str | None,
    device: str,
    probe: Path,
    shallow_checkpoint: Path,
    dataset_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if wish:
        monkeypatch.setenv("OMP_NUM_THREADS", wish)
    command = launcher.command
    monkeypatch.setattr(launcher, "command", lambda run: [sys.executable, str(probe), *command(run)[2:]])
    config = configuration(shallow_checkpoint, dataset_folder, tmp_path / "runs", {"training.device": device})
    with pytest.raises(UserError, match="ended without a result") as caught:
        launcher.train(prepare_run(config))
    assert f'"threads": {wish or devices.processor_threads(1)},' in str(caught.value)
    assert devices.processor_threads(2) == max(1, devices.processor_threads(1) // 2)
