"""Anima's Qwen3 and text adapter in training: steps beside a plain loop around transformers' and diffusers' models, and what runs do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.unit.training.parity.plain_anima import plain_denoiser, plain_steps, replace_torchvision
from tests.unit.training.parity.plain_recipe import Gradients, distance, draws, names, train_ours
from tests.unit.training_helpers import apart, configuration, make_dataset
from trainer.adapters import adapter
from trainer.adapters.text_adapters import adapt_text
from trainer.config.run_config import RunConfig
from trainer.families import open_checkpoint
from trainer.families.anima.anima_family import FAMILY
from trainer.families.anima.tokenizers import qwen_tokens, t5_tokens

pytestmark = pytest.mark.seconds
CPU = torch.device("cpu")
RATES = {"unet": 1e-3, "te1": 5e-4, "adapter": 2e-4}
LAYERS = {
    "te1": r"layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
    "adapter": r"blocks\.\d+\.((self|cross)_attn\.[qkvo]_proj|mlp\.[02])",
}
COUNTS = {"te1": 7, "adapter": 10}  # in the tiny model's single layer and block
QWEN, ADAPTER = {"network.text_encoder": True, "optimizer.text_encoder_lr": RATES["te1"]}, {"optimizer.text_adapter_lr": RATES["adapter"]}
TRAINED: dict[str, dict[str, Any]] = {"adapter": ADAPTER, "te1": QWEN, "te1+adapter": {**QWEN, **ADAPTER}}
CHANGES: dict[str, Any] = {
    "objective.timestep_sampling": "logit-normal",
    "optimizer.lr": RATES["unet"],
    "optimizer.max_grad_norm": 0.0,
    "training.epochs": 2,
    "training.batch_size": 2,
    "training.gradient_accumulation": 1,
}
CAPTIONS = ["myStyle", "1girl, hatsune miku (vocaloid), 青い髪, ~♥, score_7, long hair, smile", "a cat", ""]


def dataset(root: Path) -> Path:
    """Four images with captions of different lengths, one of them empty."""
    folder = make_dataset(root, 4)
    for file, caption in zip(sorted(folder.rglob("*.txt")), CAPTIONS, strict=True):
        file.write_text(caption, encoding="utf-8")
    return folder


def plain_text(config: RunConfig, components: list[str]) -> tuple[dict[str, Any], dict[str, torch.nn.Parameter]]:
    """Qwen3 and the adapter with peft's LoRA in ``components``, which starts as the trainer's; and the parameters that are trained."""
    checkpoint = open_checkpoint(config.base.checkpoint)
    models = FAMILY.load_text_encoder(checkpoint, torch.float32, CPU).modules
    settings = FAMILY.text_settings(75, 0)
    first = FAMILY.load_text_encoder(checkpoint, torch.float32, CPU, settings)
    if components == ["adapter"]:
        first.qwen = None  # the trainer has the adapter alone
    adapt_text(first, FAMILY, config, config.training.seed)
    start = {name: value for component in first.modules for name, value in prefixed(component, adapter.state(first.modules[component]))}
    trained: dict[str, torch.nn.Parameter] = {}
    for component in components:
        get_peft_model(
            models[component], LoraConfig(r=config.network.rank, lora_alpha=config.network.alpha, target_modules=LAYERS[component])
        )
        trained |= dict(prefixed(component, names(models[component])))
    assert list(start) == list(trained)
    assert len(trained) == 2 * sum(COUNTS[component] for component in components)
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(start[name])
    return models, trained


def prefixed(component: str, tensors: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(f"{component}.{name}", value) for name, value in tensors.items()]


def plain_context(models: dict[str, Any], captions: list[Any]) -> torch.Tensor:
    """(batch, 512, width) as kohya's trainer computes it: padded to 512 tokens on both sides, and masked."""
    qwen, t5 = torch.full((len(captions), 512), 151_643), torch.zeros(len(captions), 512, dtype=torch.int64)
    masks = [torch.zeros(len(captions), 512, dtype=torch.bool) for _ in range(2)]
    for row, caption in enumerate(captions):
        for ids, mask, tokens in zip((qwen, t5), masks, (qwen_tokens(caption) or [151_643], [*t5_tokens(caption), 1]), strict=True):
            ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.tensor(tokens), True
    states = models["te1"](input_ids=qwen, attention_mask=masks[0].long()).last_hidden_state * masks[0][..., None]
    context: torch.Tensor = models["adapter"](states, t5, target_attention_mask=masks[1], source_attention_mask=masks[0])
    return context


def train_plainly(config: RunConfig, components: list[str]) -> tuple[list[float], Gradients, dict[str, torch.Tensor]]:
    """Losses, gradients and last weights of AdamW over all LoRAs, one batch a step."""
    denoiser = plain_denoiser(config)
    models, in_text = plain_text(config, components)
    in_denoiser = names(denoiser)
    groups = [{"params": list(in_denoiser.values()), "lr": RATES["unet"]}]
    groups += [{"params": [p for name, p in in_text.items() if name.startswith(f"{part}.")], "lr": RATES[part]} for part in components]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=0.01, eps=1e-8)
    trained = {**in_denoiser, **in_text}
    batches = draws(config, tokenize=lambda caption: caption)
    return plain_steps(denoiser, trained, optimizer, batches, lambda batch: plain_context(models, batch.conditions))


@pytest.mark.parametrize("part", TRAINED)
def test_steps_are_those_of_a_plain_loop_around_the_models(
    tiny_anima: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    replace_torchvision(monkeypatch)
    config = configuration(tiny_anima, dataset(tmp_path), tmp_path / "runs", {**CHANGES, **TRAINED[part]})
    ours, gradients = train_ours(config, monkeypatch)
    assert ours.status == 0, ours.told[-1]
    losses, expected, weights = train_plainly(config, part.split("+"))
    assert len(losses) == 4 == len(gradients)
    assert [step.loss for step in ours.steps] == pytest.approx(losses, rel=1e-5)
    assert list(gradients[0]) == list(expected[0])
    for mine, theirs in zip(gradients, expected, strict=True):
        assert apart(of_text(mine), of_text(theirs)) < 1e-4
        assert apart(mine, theirs) < 1e-4
    last = ours.state(4)
    assert [group["lr"] for group in last["optimizer"]["param_groups"]] == [RATES[name] for name in ("unet", *part.split("+"))]
    assert distance(last["lora"], weights) < 1e-3
    assert distance(of_text(last["lora"]), of_text(weights)) < 1e-2


def of_text(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(("te1.", "adapter."))}
