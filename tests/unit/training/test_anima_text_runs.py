"""Runs that train Anima's Qwen3 or its text adapter: what is cached, resumed, checkpointed, planned, continued and written."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from random_checkpoints.anima import make_empty_anima
from tests.tools.comfyui import ComfyUI
from tests.unit.lorafile.other_programs.in_comfyui import comfy_key, load_in_comfyui
from tests.unit.training_helpers import configuration, make_dataset, thrown_back, train_here
from trainer.core.errors import UserError
from trainer.dataset import open_dataset
from trainer.families import family_named, open_checkpoint
from trainer.lorafile import inspect_lora, read_lora
from trainer.plan.planning import make_plan
from trainer.runs import events
from trainer.runs.run_folder import cache_folder
from trainer.runs.run_plan import RunPlan
from trainer.training.caching.cache import Cache

pytest.importorskip("diffusers.models.condition_embedders.condition_embedder_anima", reason="diffusers knows Anima from 0.39 on")
pytestmark = pytest.mark.seconds

CPU = torch.device("cpu")
QWEN: dict[str, Any] = {"network.text_encoder": True}
ADAPTER: dict[str, Any] = {"optimizer.text_adapter_lr": 1e-2}
BOTH = {**QWEN, **ADAPTER}
QUICK: dict[str, Any] = {"training.max_steps": 3, "training.epochs": 3, "optimizer.lr": 1e-2}
RESUMED: dict[str, dict[str, Any]] = {
    "adapter": ADAPTER,
    "both, with dropout": {**BOTH, "network.dropout": 0.3},
    "adapter alone, decomposed": {**ADAPTER, "network.unet": False, "network.dora": True},
    "both for a share": {**BOTH, "training.text_encoder_share": 0.5, "optimizer.lora_plus_ratio": 4.0},
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_ends_with_the_same_bits(tiny_anima: Path, tmp_path: Path, name: str) -> None:
    changes = {**QUICK, **RESUMED[name], "training.checkpoint_every": 1}
    whole = train_here(configuration(tiny_anima, make_dataset(tmp_path, 3), tmp_path / "runs", changes))
    assert whole.status == 0, whole.told[-1]
    again = train_here(thrown_back(whole, tmp_path / "cut", 1))
    assert [event.step for event in again.steps][-2:] == [2, 3]
    assert again.run.lora.read_bytes() == whole.run.lora.read_bytes()


def test_qwen_s_states_are_cached_at_their_length_where_only_the_adapter_is_trained(tiny_anima: Path, tmp_path: Path) -> None:
    config = configuration(tiny_anima, make_dataset(tmp_path, 3), tmp_path / "runs", {**QUICK, **ADAPTER})
    trained = train_here(config)
    assert trained.status == 0, trained.told[-1]
    checkpoint, family = open_checkpoint(str(tiny_anima)), family_named("anima")
    encoder: Any = family.load_text_encoder(checkpoint, torch.float32, CPU)
    whole = family.text_settings(75, 0)
    caches = [Cache(cache_folder(config), checkpoint.identity(), family.latents, text) for text in (replace(whole, part="front"), whole)]
    for caption in {item.caption for item in open_dataset(Path(config.dataset.path)).items}:
        (tokens,) = encoder.tokenize([caption])
        with torch.no_grad():
            states = encoder.qwen(input_ids=tokens["qwen"][None]).last_hidden_state[0]
        row = caches[0].prompt(caption)
        assert set(row) == {"states", "t5"}
        assert torch.equal(row["t5"], tokens["t5"])
        torch.testing.assert_close(row["states"], states, rtol=1e-6, atol=1e-6)
        assert not caches[1].prompt_path(caption).exists()


def test_checkpointing_and_parts_of_batches_change_no_result(tiny_anima: Path, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, 4)
    losses, norms = [], []
    for extra in ({}, {"training.gradient_checkpointing": True}, {"training.micro_batch_size": 1}):
        changes = {**QUICK, **BOTH, "training.batch_size": 2, **extra}
        trained = train_here(configuration(tiny_anima, folder, tmp_path / "runs", changes))
        assert trained.status == 0, trained.told[-1]
        losses.append([step.loss for step in trained.steps])
        norms.append([step.grad_norm for step in trained.steps])
    for other_losses, other_norms in zip(losses[1:], norms[1:], strict=True):
        assert other_losses == pytest.approx(losses[0], rel=1e-4)
        assert other_norms == pytest.approx(norms[0], rel=1e-3)


@pytest.mark.parametrize("part", [ADAPTER, BOTH], ids=["adapter", "both"])
def test_bf16_runs_train_and_paint_with_the_current_text_encoder(
    tiny_anima: Path, tmp_path: Path, request: pytest.FixtureRequest, part: dict[str, Any]
) -> None:
    changes = {
        **QUICK, **part, "network.unet": False, "optimizer.lr": 0.5, "training.precision": "bf16", "training.max_steps": 2,
        "sample.prompts": ["a (cat:1.4)"], "sample.every_epochs": 1, "sample.negative": "blurry", "validation.share": 0.34,
    }  # fmt: skip
    if "optimizer.text_adapter_lr" in part:
        changes["optimizer.text_adapter_lr"] = 0.5
    AcceleratorState._reset_state(True)  # a process has one precision, and the tests before may have had another
    request.addfinalizer(partial(AcceleratorState._reset_state, True))
    trained = train_here(configuration(tiny_anima, make_dataset(tmp_path, 3), tmp_path / "runs", changes))
    assert trained.status == 0, trained.told[-1]
    assert all(np.isfinite(step.loss) for step in trained.steps)
    before, after = (np.asarray(Image.open(path), dtype=float) for path in sorted(trained.run.samples.glob("epoch-*-00.png"))[:2])
    assert np.abs(before - after).mean() > 0.1
    assert any(isinstance(event, events.Validation) for event in trained.told)


def test_parts_that_are_not_trained_act_and_stay(tiny_anima: Path, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, 2)
    source = train_here(configuration(tiny_anima, folder, tmp_path / "runs", {**QUICK, **BOTH, "optimizer.text_encoder_lr": 1e-2}))
    assert source.status == 0, source.told[-1]
    before = {(module.component, module.name): module.delta() for module in read_lora(source.run.lora)}
    still = {"training.max_steps": 1, "optimizer.lr": 1e-9, "optimizer.weight_decay": 0.0, "base.lora": str(source.run.lora)}
    adapter, both = {"optimizer.text_adapter_lr": 1e-9}, {**QWEN, "optimizer.text_adapter_lr": 1e-9}
    losses = []
    for part in (both, {}, QWEN, adapter, {**adapter, "network.unet": False}):
        again = train_here(configuration(tiny_anima, folder, tmp_path / "runs", {**QUICK, **still, **part}))
        assert again.status == 0, again.told[-1]
        after = {(module.component, module.name): module.delta() for module in read_lora(again.run.lora)}
        assert after.keys() == before.keys()
        for key, delta in before.items():
            assert float((after[key] - delta).norm()) <= 3e-3 * float(delta.norm()) + 1e-6
        losses.append(again.steps[0].loss)
        warnings = [event.message for event in again.told if isinstance(event, events.Warning_)]
        assert any("the text adapter (10 layers)" in message for message in warnings) == ("optimizer.text_adapter_lr" not in part)
    assert losses == pytest.approx(losses[:1] * 5, rel=1e-4)


def test_the_file_has_kohya_s_keys_and_states_what_was_trained(tiny_anima: Path, tmp_path: Path) -> None:
    changes = {**QUICK, **BOTH, "training.max_steps": 1, "network.block_ranks": {"adapter": 2, "te1.layers.0.mlp": 1}}
    trained = train_here(configuration(tiny_anima, make_dataset(tmp_path, 1), tmp_path / "runs", changes))
    assert trained.status == 0, trained.told[-1]
    tensors = load_file(trained.run.lora)
    # key names of kohya's networks/lora_anima.py
    assert tensors["lora_unet_llm_adapter_blocks_0_self_attn_o_proj.lora_down.weight"].shape[0] == 2
    assert tensors["lora_unet_llm_adapter_blocks_0_mlp_2.lora_up.weight"].shape == (64, 2)
    assert tensors["lora_te_layers_0_self_attn_q_proj.lora_down.weight"].shape[0] == 4
    assert tensors["lora_te_layers_0_mlp_gate_proj.lora_down.weight"].shape[0] == 1
    information = inspect_lora(trained.run.lora)
    assert information.targets == {"adapter": 10, "te1": 7, "unet": 20} and not information.unknown_keys
    metadata = read_lora(trained.run.lora).metadata
    assert json.loads(metadata["ss_network_args"])["train_llm_adapter"] == "True"
    assert float(metadata["ss_text_encoder_lr"]) == 5e-3
    assert float(metadata["animelora.text_adapter_lr"]) == 1e-2


@pytest.mark.comfyui
def test_comfyui_uses_every_key(tiny_anima: Path, tmp_path: Path, comfyui: ComfyUI) -> None:
    if not (comfyui.path / "comfy" / "ldm" / "anima").is_dir():
        pytest.skip("this ComfyUI does not know Anima")
    beyond = {"network.modulation": True, "network.final_layer": True, "network.dora": True}
    changes = {**QUICK, **BOTH, **beyond, "training.max_steps": 1}
    trained = train_here(configuration(tiny_anima, make_dataset(tmp_path, 1), tmp_path / "runs", changes))
    job = {"lora": str(trained.run.lora), "result": str(tmp_path / "out.safetensors"), "layers": []}
    (result,) = load_in_comfyui(comfyui, tmp_path, "anima", [job])
    assert result["left"] == []
    expected = {comfy_key("anima", module.component, module.name) for module in read_lora(trained.run.lora)}
    assert set(result["patched"]) == expected and len(expected) == 35 + 10 + 7


def test_other_models_have_no_adapter(shallow_checkpoint: Path, tmp_path: Path) -> None:
    trained = train_here(configuration(shallow_checkpoint, make_dataset(tmp_path, 1), tmp_path / "runs", {**QUICK, **ADAPTER}))
    assert "Stable Diffusion 1.x models have no text adapter" in getattr(trained.told[-1], "message", "")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network.unet": False}, "both off"),
        ({"network.unet": False, **ADAPTER, "training.text_encoder_share": 0.5}, "text_encoder_share"),
        ({"optimizer.name": "prodigy", "optimizer.lr": 1.0, **ADAPTER}, "text_adapter_lr"),
    ],
)
def test_settings_that_cannot_be_trained_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        configuration(tmp_path / "x.safetensors", tmp_path, tmp_path, changes)


def test_the_plan_counts_what_is_trained_of_the_text_encoder(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(make_empty_anima(tmp_path)))
    folder = make_dataset(tmp_path, 1)

    def plan(**changes: Any) -> RunPlan:
        run = configuration(checkpoint.path, folder, tmp_path, {"network.rank": 16, **changes})
        return make_plan(run, open_dataset(folder), family_named("anima"), checkpoint, CPU, "bf16")

    frozen, adapter, qwen, both = plan(), plan(**ADAPTER), plan(**QWEN), plan(**BOTH)
    assert (frozen.modules, adapter.modules, qwen.modules, both.modules) == (280, 340, 476, 536)
    # facts of kohya's files: 2.56 M and 10.1 M parameters at rank 16
    assert adapter.trainable_parameters - frozen.trainable_parameters == 6 * 16 * (8 * 2048 + 2 * 5 * 1024) == 2_555_904
    assert both.trainable_parameters - adapter.trainable_parameters == qwen.trainable_parameters - frozen.trainable_parameters == 10_092_544
    # 134.7 M parameters of the adapter in bf16; Qwen3 0.6B (596.0 M) needs the adapter behind it
    assert adapter.memory["base"] - frozen.memory["base"] == pytest.approx(0.2693, abs=2e-3)
    assert qwen.memory["base"] - adapter.memory["base"] == pytest.approx(1.1921, abs=2e-3)
    assert both.memory["activations"] > qwen.memory["activations"] > frozen.memory["activations"]
