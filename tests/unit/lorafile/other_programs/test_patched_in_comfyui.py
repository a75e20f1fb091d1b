"""In a real ComfyUI, Load LoRA gives the trained weights, also for files that core's loader applies differently."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tools.comfyui import ComfyUI, find_comfyuis
from trainer.lorafile import LoraModule
from trainer.lorafile.comfyui_dora import DORA_BASE_KEY, DORA_NORM_KEY, OF_BASE, for_comfyui
from trainer.lorafile.reading.read_lora import read_lora

ROOT = Path(__file__).resolve().parents[4]
PROGRAM = Path(__file__).parent / "programs" / "patch_in_comfyui.py"
LINEAR, CONVOLUTION = "middle_block.1.transformer_blocks.0.attn1.to_q", "middle_block.0.in_layers.2"
KEYS = [f"diffusion_model.{name}.weight" for name in (LINEAR, CONVOLUTION)]
PREFIX = [f"lora_unet_{name.replace('.', '_')}" for name in (LINEAR, CONVOLUTION)]

pytestmark = pytest.mark.comfyui


_INSTALLED = find_comfyuis()
_NEWEST = _INSTALLED[0] if _INSTALLED else None
_PLACES = [_NEWEST, *(pytest.param(each, marks=pytest.mark.long) for each in _INSTALLED[1:])]


@pytest.fixture(scope="module", params=_PLACES, ids=[each.version for each in _INSTALLED] or ["none"])
def place(request: pytest.FixtureRequest) -> ComfyUI:
    """Each available ComfyUI."""
    found: ComfyUI = request.param
    return found


def sizes(checkpoint: Path) -> list[tuple[int, ...]]:
    weights = load_file(checkpoint)
    return [tuple(weights[f"model.{key}"].shape) for key in KEYS]


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def decomposed(checkpoint: Path) -> dict[str, torch.Tensor]:
    """DoRA of rank 2 and scale 2 on a Linear and a convolution, with magnitudes near the norms of the base."""
    base, tensors = load_file(checkpoint), {}
    for number, (key, prefix) in enumerate(zip(KEYS, PREFIX, strict=True)):
        weight = base[f"model.{key}"].float()
        tail = (1, 1) if weight.ndim == 4 else ()
        size = float(weight.flatten(1).norm(dim=1).mean()) / weight[0].numel() ** 0.5
        tensors[f"{prefix}.lora_up.weight"] = random(weight.shape[0], 2, *tail, seed=number) * size
        tensors[f"{prefix}.lora_down.weight"] = random(2, *weight.shape[1:], seed=10 + number) * 0.3
        tensors[f"{prefix}.alpha"] = torch.tensor(4.0)
        norms = weight.flatten(1).norm(dim=1) * (1 + 0.1 * random(weight.shape[0], seed=20 + number))
        tensors[f"{prefix}.dora_scale"] = norms.reshape(-1, *[1] * (weight.ndim - 1))
    return tensors


def trained(tensors: dict[str, torch.Tensor], prefix: str, weight: torch.Tensor) -> torch.Tensor:
    """m (W + D) / ||W + D|| in double precision: equation 5 of the paper."""
    up, down = (tensors[f"{prefix}.lora_{side}.weight"].double().flatten(1) for side in ("up", "down"))
    whole = weight.double().flatten(1) + 2.0 * (up @ down)
    scale = tensors[f"{prefix}.dora_scale"].double().reshape(-1, 1)
    wanted: torch.Tensor = (scale * whole / whole.norm(dim=1, keepdim=True)).reshape(weight.shape)
    return wanted


def _number(module: LoraModule) -> int:
    """The index in ``KEYS`` of the weight that a module changes."""
    return 0 if module.name.endswith("attn1.to_q") else 1


def dora_files(checkpoint: Path, folder: Path) -> None:
    """Write ``dora`` and the same ``exported`` for core's loader."""
    tensors = decomposed(checkpoint)
    save_file(tensors, folder / "dora.safetensors", {"ss_base_model_version": "sd_v1"})
    base = load_file(checkpoint)
    weights = read_lora(folder / "dora.safetensors")
    moved = for_comfyui(weights, lambda module: base[f"model.{KEYS[_number(module)]}"], "tiny")
    assert moved.metadata[DORA_NORM_KEY] == OF_BASE and moved.metadata[DORA_BASE_KEY] == "tiny"
    exported = dict(tensors)
    for module in moved:
        exported[f"{PREFIX[_number(module)]}.dora_scale"] = module.tensors["dora_scale"]
    save_file(exported, folder / "exported.safetensors", {"ss_base_model_version": "sd_v1", DORA_NORM_KEY: OF_BASE})


def tucker_lokr(checkpoint: Path) -> dict[str, torch.Tensor]:
    """A LoKr of rank 3 in Tucker form for the convolution."""
    _, (out, into, *_) = sizes(checkpoint)
    return {
        f"{PREFIX[1]}.lokr_w1": random(4, 2, seed=1),
        f"{PREFIX[1]}.lokr_t2": random(3, 3, 3, 3, seed=2) * 0.1,
        f"{PREFIX[1]}.lokr_w2_a": random(3, out // 4, seed=3),
        f"{PREFIX[1]}.lokr_w2_b": random(3, into // 2, seed=4),
        f"{PREFIX[1]}.alpha": torch.tensor(6.0),
    }


def tucker_files(checkpoint: Path, folder: Path) -> None:
    """Write ``plain`` and ``decomposed``, the same with magnitudes."""
    tensors = tucker_lokr(checkpoint)
    save_file(tensors, folder / "plain.safetensors", {"ss_base_model_version": "sd_v1"})
    scale = load_file(checkpoint)[f"model.{KEYS[1]}"].float().flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    save_file({**tensors, f"{PREFIX[1]}.dora_scale": scale}, folder / "decomposed.safetensors", {"ss_base_model_version": "sd_v1"})


@pytest.fixture(scope="module")
def results(place: ComfyUI, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights that one ComfyUI gives with each file, as ``<file> <strength>.out``."""
    folder = tmp_path_factory.mktemp("patched")
    dora_files(tiny_checkpoint, folder)
    tucker_files(tiny_checkpoint, folder)
    tried = [(name, strength, KEYS) for name in ("dora", "exported") for strength in (1.0, 0.5)]
    tried += [(name, 1.0, KEYS[1:]) for name in ("plain", "decomposed")]
    loras = [
        {"lora": str(folder / f"{name}.safetensors"), "result": str(folder / f"{name} {s}.out"), "strength": s, "layers": layers}
        for name, s, layers in tried
    ]
    (folder / "base").mkdir()
    (folder / "jobs.json").write_text(json.dumps({"checkpoint": str(tiny_checkpoint), "loras": loras}), encoding="utf-8")
    command = [str(place.python), str(PROGRAM), str(place.path), str(ROOT), str(folder / "base"), str(folder / "jobs.json")]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=300, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-4000:]
    report = json.loads(lines[-1].removeprefix("RESULT "))
    assert report["apart"] == [True, True], "core's Train LoRA could not copy the model"
    assert [lora.get("unknown") for lora in report["loras"]] == [[]] * len(loras)
    return folder


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("name", ["dora", "exported"])
def test_dora_gives_trained_weight_in_load_lora_and_exported_in_core(
    results: Path, tiny_checkpoint: Path, name: str, strength: float
) -> None:
    tensors, weights = decomposed(tiny_checkpoint), load_file(results / f"{name} {strength}.out")
    for key, prefix in zip(KEYS, PREFIX, strict=True):
        start = weights[f"base {key}"].double()
        wanted = start + strength * (trained(tensors, prefix, start) - start)
        effect = float((wanted - start).norm())
        assert float((weights[f"ours {key}"].double() - wanted).norm()) < 1e-4 * effect, key
        apart = float((weights[f"core {key}"].double() - wanted).norm()) / effect
        if name == "exported":
            assert apart < 1e-4, key
        else:
            assert apart > 0.01, "core's loader now applies DoRA as trained: update the documentation"


def test_tucker_lokr_matches_its_formula(results: Path, tiny_checkpoint: Path) -> None:
    _, (out, into, *_) = sizes(tiny_checkpoint)
    prefix, key, tensors = PREFIX[1], KEYS[1], tucker_lokr(tiny_checkpoint)
    second = torch.zeros(out // 4, into // 2, 3, 3, dtype=torch.float64)
    for p in range(3):
        for q in range(3):
            outer = tensors[f"{prefix}.lokr_w2_a"][p].double()[:, None] * tensors[f"{prefix}.lokr_w2_b"][q].double()[None, :]
            second += outer[:, :, None, None] * tensors[f"{prefix}.lokr_t2"][p, q].double()
    first = tensors[f"{prefix}.lokr_w1"].double()
    rows = [torch.cat([first[i, j] * second for j in range(2)], 1) for i in range(4)]
    change = 6.0 / 3 * torch.cat(rows)
    plain, with_scale = (load_file(results / f"{name} 1.0.out") for name in ("plain", "decomposed"))
    start = plain[f"base {key}"].double()
    torch.testing.assert_close(plain[f"ours {key}"].double() - start, change, rtol=1e-4, atol=1e-4)
    whole = start + change
    scale = start.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    wanted = scale * whole / whole.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(with_scale[f"ours {key}"].double(), wanted, rtol=1e-4, atol=1e-4)
