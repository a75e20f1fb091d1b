"""InvokeAI's own code recognises the exports, finds every layer and computes the same weight changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.lorafile.helpers import UNETS
from tests.unit.lorafile.other_programs.compatibility import record
from tests.unit.lorafile.other_programs.samples import sample, sd15_sizes, sdxl_sizes
from trainer.lorafile import convert, write_lora

_PROGRAM = Path(__file__).parent / "programs" / "load_in_invokeai.py"
_SITE = Path(os.environ.get("INVOKEAI_SITE") or Path.home() / "invokeai-site")


@pytest.mark.slow
@pytest.mark.skipif(
    not (_SITE / "invokeai").is_dir(), reason=f"InvokeAI is not in {_SITE}: see programs/load_in_invokeai.py, set INVOKEAI_SITE"
)
def test_invokeai_finds_every_layer_and_computes_same_changes(tmp_path: Path) -> None:
    picked = ("mid_block.attentions.0.transformer_blocks.0.attn2.to_k", "mid_block.attentions.0.proj_in")
    cases = [("sd1", sd15_sizes(), "lora"), ("sd1", sd15_sizes(), "lokr"), ("sdxl", sdxl_sizes(), "lora")]
    jobs, files = [], []
    for number, (family, sizes, algorithm) in enumerate(cases):
        weights = sample(sizes, family, algorithm)
        path = tmp_path / f"{number}.safetensors"
        write_lora(path, convert(weights, "kohya"))
        jobs.append(
            {
                "lora": str(path),
                "result": str(tmp_path / f"{number}.out.safetensors"),
                "layers": picked,
                "family": family,
                "unet": UNETS[family],
            }
        )
        files.append(weights)
    (tmp_path / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    command = [sys.executable, str(_PROGRAM), str(_SITE), str(tmp_path / "jobs.json")]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=900, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.strip().splitlines()[-1])
    version = next(_SITE.glob("invokeai-*.dist-info")).name.split("-")[1].removesuffix(".dist")
    for (family, sizes, algorithm), weights, job, result in zip(cases, files, jobs, results, strict=True):
        recognised = result["base"] == {"sd1": "sd-1", "sdxl": "sdxl"}[family]
        assert recognised == (algorithm == "lora"), result["base"]  # its probe does not find the text width in LoKr
        assert result["layers"] == len(sizes)
        assert result["found"] == sorted(name for component, name in sizes if component == "unet")
        changes = load_file(str(job["result"]))
        for module in weights:
            if module.component == "unet" and module.name in picked:
                ours = module.delta().reshape(changes[module.name].shape)
                assert torch.allclose(changes[module.name], ours, rtol=1e-3, atol=1e-3)
        name = {"sd1": "SD 1.5", "sdxl": "SDXL"}[family]
        probe = "base recognised" if recognised else "base NOT recognised (name it by hand)"
        found = f"{probe}, all {result['layers']} layers read, {len(result['found'])} in the UNet, changes equal to 1e-3"
        record("InvokeAI", version, f"{name}, kohya format, {algorithm}", found, "its probe, loader and patcher on a full-size UNet")
