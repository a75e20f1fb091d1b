"""stable-diffusion.cpp samples pictures with exported LoRAs, on a full-size random checkpoint.

The checkpoint's weights are random but scaled so that activations stay finite (random_checkpoints/make_checkpoint.py): the pictures are
colourful noise, the same for the same seed, and they depend on every layer. The numbers are checked with the picture of a checkpoint
that we merged the same LoRAs into.
"""

from __future__ import annotations

import gc
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from trainer.lorafile import convert, merge_into_checkpoint, write_lora

from .compat import record
from .samples import sample, sd15_sizes

_STRENGTHS = {"lora": 0.5, "loha": 1.0, "lokr": 0.5}
_OTHERS = ("comfyui", "diffusers", "peft")
_APPLIED = re.compile(r"\((\d+) / (\d+)\) LoRA tensors have been applied, lora_file_path = .*?(\w+)\.safetensors")
_HOW = "its Python binding, full-size random checkpoint, 64 px, 2 steps"
_HOW_OTHERS = f"{_HOW}, layers with a side below 1280"
Picture = npt.NDArray[np.float32]


class Painter:
    """A model in sd.cpp; keeps what it logged about the last picture."""

    def __init__(self, package: Any, capfd: pytest.CaptureFixture[str], checkpoint: Path, loras: Path) -> None:
        self.capfd, self.log = capfd, ""
        self.model = package.StableDiffusion(model_path=str(checkpoint), lora_model_dir=str(loras), verbose=True)

    def paint(self, prompt: str) -> Picture:
        self.capfd.readouterr()
        image = self.model.generate_image(prompt=prompt, width=64, height=64, sample_steps=2, seed=1, cfg_scale=1.0)[0]
        self.log = "".join(self.capfd.readouterr())
        return np.asarray(image, dtype=np.float32)

    def applied(self) -> dict[str, tuple[int, int]]:
        """Of each LoRA that the last picture used: tensors applied, tensors in the file."""
        return {name: (int(used), int(there)) for used, there, name in _APPLIED.findall(self.log)}


def distance(first: Picture, second: Picture) -> float:
    """The mean difference, of 255."""
    return float(np.abs(first - second).mean())


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("stable_diffusion_cpp") is None, reason="stable-diffusion-cpp-python is not installed: NOT CHECKED with stable-diffusion.cpp"
)
def test_sdcpp_applies_every_tensor_and_paints_what_a_merged_checkpoint_paints(
    tmp_path: Path, full_checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    package: Any = import_module("stable_diffusion_cpp")
    loras = {algorithm: sample(sd15_sizes(), "sd1", algorithm) for algorithm in _STRENGTHS}
    for algorithm, weights in loras.items():
        write_lora(tmp_path / f"{algorithm}.safetensors", convert(weights, "kohya"))
    # of these sd.cpp only says what it passes over: they need every block and kind of layer, not the widest, which take most of the time
    narrow = {layer: size for layer, size in sd15_sizes().items() if min(size[:2]) < 1280}
    for form in _OTHERS:
        write_lora(tmp_path / f"{form}.safetensors", convert(sample(narrow, "sd1"), form))
    write_lora(tmp_path / "dora.safetensors", convert(sample(narrow, "sd1", "dora"), "kohya"))
    painter, found = Painter(package, capfd, full_checkpoint, tmp_path), {}

    plain = painter.paint("a girl")
    assert plain.std() > 20 and np.unique(plain).size > 100, "the base paints no picture that could change"
    assert np.array_equal(painter.paint("a girl"), plain)
    together = painter.paint("a girl" + "".join(f"<lora:{name}:{strength}>" for name, strength in _STRENGTHS.items()))
    applied = painter.applied()
    for name, weights in loras.items():
        there = len(convert(weights, "kohya").tensors)
        assert applied.get(name) == (there, there), painter.log[-2000:]
        found[name] = f"all {there} tensors applied"

    del painter
    gc.collect()
    merge_into_checkpoint(full_checkpoint, [(loras[name], strength) for name, strength in _STRENGTHS.items()], tmp_path / "all.safetensors")
    painter = Painter(package, capfd, tmp_path / "all.safetensors", tmp_path)  # a new one: sd.cpp takes as long to take LoRAs out again
    merged = painter.paint("a girl")
    (tmp_path / "all.safetensors").unlink()  # 2 GB
    apart = distance(together, merged)
    # not 0: both round the weights to fp16, sd.cpp once for each LoRA. LoHa alone, the weakest of them, changes a picture by 2 of 255
    assert apart < min(1.0, distance(merged, plain) / 50)

    painter.paint("a girl" + "".join(f"<lora:{name}:1>" for name in ("dora", *_OTHERS)))
    for name in ("dora", *_OTHERS):
        used, there = painter.applied()[name]
        found[name] = f"{used} of {there} tensors applied"
        if used < there:
            found[name] += ": NOT the magnitudes, so not DoRA" if name == "dora" else ": NOT the text encoder's, export as kohya"

    version = getattr(package, "__version__", "unknown")
    for name, finding in found.items():
        what = f"SD 1.5, {name} format, lora" if name in _OTHERS else f"SD 1.5, kohya format, {name}"
        record("stable-diffusion.cpp", version, what, finding, _HOW if name in loras else _HOW_OTHERS)
    finding = f"the picture of a checkpoint with the same LoRAs merged in; {apart:.2f} of 255 apart on average"
    record("stable-diffusion.cpp", version, f"SD 1.5, kohya format, {', '.join(_STRENGTHS)} together", finding, _HOW)
