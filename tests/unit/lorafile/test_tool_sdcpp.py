"""stable-diffusion.cpp samples a real image with and without an exported LoRA, on a full-size random checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.lorafile import convert, write_lora

from .compat import record
from .samples import sample, sd15_sizes


@pytest.mark.slow
def test_sdcpp_applies_every_tensor_and_the_image_changes(tmp_path: Path, full_checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    package: Any = pytest.importorskip(
        "stable_diffusion_cpp", reason="stable-diffusion-cpp-python is not installed: NOT CHECKED with sd.cpp"
    )
    weights = sample(sd15_sizes(), "sd1", alpha=1.0)
    write_lora(tmp_path / "style.safetensors", convert(weights, "kohya"))
    model = package.StableDiffusion(model_path=str(full_checkpoint), lora_model_dir=str(tmp_path), verbose=True)
    options: dict[str, Any] = {"width": 128, "height": 128, "sample_steps": 2, "seed": 1, "cfg_scale": 1.0}
    images = {}
    for prompt in ("a girl", "a girl<lora:style:1>", "a girl "):
        images[prompt] = np.asarray(model.generate_image(prompt=prompt, **options)[0], dtype=np.float32)
    log = "".join(capfd.readouterr())
    changed = np.abs(images["a girl"] - images["a girl<lora:style:1>"]).mean()
    repeated = np.abs(images["a girl"] - images["a girl "]).mean()
    assert changed > 1.0 and changed > 10 * repeated
    applied = re.search(r"\((\d+) / (\d+)\) LoRA tensors", log)
    assert applied is not None and applied[1] == applied[2], log[-2000:]
    version = getattr(package, "__version__", "unknown")
    found = f"{applied[1]} of {applied[2]} tensors applied, the image changes by {changed:.1f} of 255 on average"
    record(
        "stable-diffusion.cpp",
        version,
        "SD 1.5, kohya format, lora",
        found,
        "its Python binding, full-size random checkpoint, 128 px, 2 steps",
    )
