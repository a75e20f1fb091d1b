"""Which packages a training process imports."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.training_helpers import configuration, train_here
from trainer.core.library_imports import UNUSED, hidden
from trainer.launch import launcher
from trainer.launch.prepared_run import prepare_run

pytestmark = pytest.mark.seconds  # each test starts a process that imports torch

ROOT = Path(__file__).resolve().parents[3]
_TRAINING = """
import trainer.training.run
from trainer.core.library_imports import import_models, import_peft, import_text_models
import_models()
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
import_text_models()
import_peft()
import transformers.models.clip.modeling_clip
"""
_PAINTING = """
from trainer.core.library_imports import import_models
import_models(pipelines=True)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
import peft
"""
_FOUND = """
import importlib.util, json, sys
from trainer.core.library_imports import UNUSED
imported = [name for name in UNUSED if name in sys.modules]
print(json.dumps([imported, [name for name in UNUSED if importlib.util.find_spec(name) is None]]))
"""


@pytest.mark.parametrize("importing", [_TRAINING, _PAINTING])
def test_unused_packages_are_not_imported(tmp_path: Path, importing: str) -> None:
    """Each is installed here, in a high version, and broken."""
    for name in UNUSED:
        package = tmp_path / name
        package.mkdir()
        (package / "__init__.py").write_text(f"raise RuntimeError('{name} was built for another torch')")
        described = tmp_path / f"{name}-99.0.dist-info"
        described.mkdir()
        (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0\n")
        (described / "top_level.txt").write_text(name)
    found_first = f"import sys\nsys.path[:0] = {[str(tmp_path), str(ROOT)]!r}\n"  # a portable Python does not look into PYTHONPATH
    done = subprocess.run([sys.executable, "-c", found_first + importing + _FOUND], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    imported, lost = json.loads(done.stdout.splitlines()[-1])
    assert imported == []
    assert lost == [], "hidden for good"
    assert "torchvision" not in done.stderr, "a warning of what was hidden on purpose"


@pytest.mark.skipif(bool(sys.flags.isolated), reason="a portable Python ignores PYTHONPROFILEIMPORTTIME")
def test_a_training_with_cached_prompts_imports_neither_transformers_nor_peft(
    shallow_checkpoint: Path, dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, object] = {"training.max_steps": 1, "sample.every_epochs": 1}
    assert train_here(configuration(shallow_checkpoint, dataset_folder, tmp_path, changes)).status == 0
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    done = launcher.train(prepare_run(configuration(shallow_checkpoint, dataset_folder, tmp_path, {**changes, "training.seed": 7})))
    log = (done.run_dir / "child.log").read_text(encoding="utf-8")
    # a module that is refused has a line, too, but not the package that it would be in
    imported = {line.rpartition("|")[2].strip() for line in log.splitlines() if line.startswith("import time:")}
    assert {"torch", "diffusers", "trainer"} <= imported
    assert sorted(imported & {"transformers", "peft", *UNUSED}) == []


def test_imported_packages_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there_to_be_found.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with hidden(("json", "nowhere_to_be_found", "there_to_be_found")):
        assert sys.modules["json"] is json
        with pytest.raises(ImportError):
            importlib.import_module("there_to_be_found")
    importlib.import_module("there_to_be_found")
    assert "nowhere_to_be_found" not in sys.modules
