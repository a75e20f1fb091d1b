"""What a training process imports, and what it does without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.imports import NEEDLESS, hidden

ROOT = Path(__file__).resolve().parents[3]
_IMPORTING = """
import importlib.util, json, sys
import trainer.loop
from trainer.imports import NEEDLESS, import_models
import_models()
from transformers import CLIPTextModel
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
imported = [name for name in NEEDLESS if name in sys.modules]
print(json.dumps([imported, [name for name in NEEDLESS if importlib.util.find_spec(name) is None]]))
"""


def test_a_training_imports_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    """Each is installed here, in a high version, and broken."""
    for name in NEEDLESS:
        package = tmp_path / name
        package.mkdir()
        (package / "__init__.py").write_text(f"raise RuntimeError('{name} was built for another torch')")
        described = tmp_path / f"{name}-99.0.dist-info"
        described.mkdir()
        (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0\n")
        (described / "top_level.txt").write_text(name)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    done = subprocess.run([sys.executable, "-c", _IMPORTING], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    imported, lost = json.loads(done.stdout.splitlines()[-1])
    assert imported == []
    assert lost == [], "hidden for good"
    assert "torchvision" not in done.stderr, "a warning of what was hidden on purpose"


def test_what_is_imported_already_is_not_hidden() -> None:
    import json as kept

    with hidden(("json", "nowhere_to_be_found", "wave")):
        assert sys.modules["json"] is kept
        with pytest.raises(ImportError):
            import wave
    import wave  # noqa: F401

    assert "nowhere_to_be_found" not in sys.modules
