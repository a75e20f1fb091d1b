"""stable-diffusion.cpp generates images with exported LoRAs and a full-size random checkpoint.

The checkpoint's weights are random, but scaled so that activations stay finite (random_checkpoints/make_checkpoint.py). The images are
colourful noise, equal for equal seeds, and depend on every layer. They are compared with the image from a checkpoint into which the same
LoRAs were merged.
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

from tests.unit.lorafile.other_programs.compatibility import record
from tests.unit.lorafile.other_programs.samples import sample, sd15_sizes
from trainer.lorafile import convert, merge_into_checkpoint, write_lora

_STRENGTHS = {"lora": 0.5, "loha": 1.0, "lokr": 0.5}
_OTHERS = ("comfyui", "diffusers", "peft")
_APPLIED = re.compile(r"\((\d+) / (\d+)\) LoRA tensors have been applied, lora_file_path = .*?(\w+)\.safetensors")
_HOW = "its Python binding, full-size random checkpoint, 64 px, 2 steps"
_HOW_OTHERS = f"{_HOW}, layers with a side below 1280"
Pixels = npt.NDArray[np.float32]


class Generator:
    """A model in sd.cpp, with its log of the last image."""

    def __init__(self, package: Any, capfd: pytest.CaptureFixture[str], checkpoint: Path, loras: Path) -> None:
        self.capfd, self.log = capfd, ""
        self.model = package.StableDiffusion(model_path=str(checkpoint), lora_model_dir=str(loras), verbose=True)

    def generate(self, prompt: str) -> Pixels:
        self.capfd.readouterr()
        image = self.model.generate_image(prompt=prompt, width=64, height=64, sample_steps=2, seed=1, cfg_scale=1.0)[0]
        self.log = "".join(self.capfd.readouterr())
        return np.asarray(image, dtype=np.float32)

    def applied(self) -> dict[str, tuple[int, int]]:
        """For each LoRA of the last image, the number of applied tensors and of tensors in the file."""
        return {name: (int(used), int(there)) for used, there, name in _APPLIED.findall(self.log)}


def distance(first: Pixels, second: Pixels) -> float:
    """The mean difference on a scale of 255."""
    return float(np.abs(first - second).mean())


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("stable_diffusion_cpp") is None, reason="stable-diffusion-cpp-python is not installed: NOT CHECKED with stable-diffusion.cpp"
)
def test_sdcpp_applies_every_tensor_like_a_merged_checkpoint(
    tmp_path: Path, full_checkpoint: Path, long_form: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    package: Any = import_module("stable_diffusion_cpp")
    loras = {algorithm: sample(sd15_sizes(), "sd1", algorithm) for algorithm in _STRENGTHS}
    for algorithm, weights in loras.items():
        write_lora(tmp_path / f"{algorithm}.safetensors", convert(weights, "kohya"))
    # for these formats, only the number of applied tensors is checked, so the widest layers, which take most of the time, are left out
    narrow = {layer: size for layer, size in sd15_sizes().items() if min(size[:2]) < 1280}
    counted = ("dora", *_OTHERS) if long_form else ()
    for name in counted:
        file = convert(sample(narrow, "sd1", "dora"), "kohya") if name == "dora" else convert(sample(narrow, "sd1"), name)
        write_lora(tmp_path / f"{name}.safetensors", file)
    generator, found = Generator(package, capfd, full_checkpoint, tmp_path), {}

    plain = generator.generate("a girl")
    assert plain.std() > 20 and np.unique(plain).size > 100, "the base gives no image that could change"
    assert np.array_equal(generator.generate("a girl"), plain)
    with_loras = generator.generate("a girl" + "".join(f"<lora:{name}:{strength}>" for name, strength in _STRENGTHS.items()))
    applied = generator.applied()
    for name, weights in loras.items():
        there = len(convert(weights, "kohya").tensors)
        assert applied.get(name) == (there, there), generator.log[-2000:]
        found[name] = f"all {there} tensors applied"

    del generator
    gc.collect()
    merge_into_checkpoint(full_checkpoint, [(loras[name], strength) for name, strength in _STRENGTHS.items()], tmp_path / "all.safetensors")
    generator = Generator(package, capfd, tmp_path / "all.safetensors", tmp_path)  # a new one, because removing LoRAs takes sd.cpp as long
    merged = generator.generate("a girl")
    (tmp_path / "all.safetensors").unlink()  # 2 GB
    apart = distance(with_loras, merged)
    # not 0, because both round the weights to fp16, sd.cpp once for each LoRA; LoHa, the weakest, alone changes an image by 2 of 255
    assert apart < min(1.0, distance(merged, plain) / 50)

    if counted:
        generator.generate("a girl" + "".join(f"<lora:{name}:1>" for name in counted))
    for name in counted:
        used, there = generator.applied()[name]
        found[name] = f"{used} of {there} tensors applied"
        if used < there:
            found[name] += ": NOT the magnitudes, so not DoRA" if name == "dora" else ": NOT the text encoder's, export as kohya"

    version = getattr(package, "__version__", "unknown")
    for name, finding in found.items():
        what = f"SD 1.5, {name} format, lora" if name in _OTHERS else f"SD 1.5, kohya format, {name}"
        record("stable-diffusion.cpp", version, what, finding, _HOW if name in loras else _HOW_OTHERS)
    finding = f"the image of a checkpoint with the same LoRAs merged in; {apart:.2f} of 255 apart on average"
    record("stable-diffusion.cpp", version, f"SD 1.5, kohya format, {', '.join(_STRENGTHS)} together", finding, _HOW)
