"""Fused blocks have the values and gradients of diffusers' blocks.

Without a GPU, Triton's interpreter runs the kernels on the CPU: the same code, slowly (tests/conftest.py asks for it).
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from demo.base_path import BASE_FILE
from tests.tools.parameters import mark_long
from tests.unit.compute.fused_blocks.helpers import DEVICE, random
from tests.unit.compute.helpers import same_training
from tests.unit.training_helpers import configuration, make_dataset, train_here
from trainer.adapters import adapter
from trainer.compute import accelerations, denoiser_setup, fused_blocks
from trainer.compute.acceleration import Context
from trainer.compute.attention_processor import Processor
from trainer.compute.casting import CastingConv2d, CastingLinear, LowPrecisionCopies
from trainer.compute.cuda_graphs.cuda_recorder import LossAndGradients
from trainer.compute.cuda_graphs.recorded_passes import RecordedPasses
from trainer.compute.fused_blocks import kernel_check, unet_blocks
from trainer.config import run_config
from trainer.dataset import open_dataset
from trainer.families import family_of, open_checkpoint
from trainer.plan.meta_models import memory_of
from trainer.plan.planning import make_plan
from trainer.runs import events

SHALLOW: dict[str, Any] = {
    "block_out_channels": (32, 96),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "norm_num_groups": 8,
    "attention_head_dim": 4,
    "cross_attention_dim": 24,
}


def unet_passes(*, fuse: bool, dtype: torch.dtype, targets: str, checkpointing: bool = False) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Prediction and LoRA's gradients of a shallow UNet with every kind of block of the real ones, and it."""
    from diffusers import UNet2DConditionModel

    family = family_of(open_checkpoint(str(BASE_FILE)))
    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel(**SHALLOW).to(dtype).requires_grad_(False)
    unet.to(DEVICE, memory_format=torch.channels_last)
    if fuse:
        unet_blocks.fuse(unet)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    network = run_config.parse({
        "base": {"checkpoint": "-"}, "dataset": {"path": "-"}, "network": {"rank": 4, "targets": targets}
    }).network  # fmt: skip
    adapter.adapt(unet, family.denoiser_targets(unet, targets), network, 1)
    unet.to(DEVICE).train()
    parameters = adapter.parameters(unet)
    for number, parameter in enumerate(parameters):
        parameter.data = 0.05 * random(*parameter.shape, seed=number)
    noisy, text = random(2, 4, 4, 8).to(dtype), random(2, 77, unet.config.cross_attention_dim, seed=1).to(dtype)
    predicted = unet(noisy, torch.tensor([10, 700], device=DEVICE), encoder_hidden_states=text).sample
    gradients = torch.autograd.grad((predicted.float() * random(*predicted.shape, seed=2)).sum(), parameters)
    return predicted.detach().float(), torch.cat([gradient.flatten().float() for gradient in gradients]), unet


def apart(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one - two).norm() / two.norm())


@pytest.mark.seconds
@pytest.mark.parametrize("targets", mark_long(["all-linear", "all-linear+conv"], "all-linear"))
def test_fused_unet_matches_the_plain_one(targets: str) -> None:
    predicted, gradients, plain = unet_passes(fuse=False, dtype=torch.float32, targets=targets)
    ours, learnt, unet = unet_passes(fuse=True, dtype=torch.float32, targets=targets, checkpointing=targets == "all-linear")
    assert apart(ours, predicted) < 1e-5
    assert apart(learnt, gradients) < 1e-4
    counts = {name: sum(type(module).__name__ == name for module in plain.modules()) for name in ("ResnetBlock2D", "GEGLU", "Attention")}
    assert counts["ResnetBlock2D"] == sum(isinstance(module, unet_blocks.FusedResnet) for module in unet.modules()) > 0
    assert counts["GEGLU"] == sum(isinstance(module, unet_blocks.FusedBlock) for module in unet.modules()) > 0
    attentions = [module for module in unet.modules() if type(module).__name__ == "Attention"]
    assert counts["Attention"] == len(attentions) and all(isinstance(each.processor, Processor) for each in attentions)


@pytest.mark.long  # each kernel in each precision: test_kernels.py
@pytest.mark.seconds
def test_fused_unet_is_as_accurate_in_half_precision() -> None:
    truth = unet_passes(fuse=False, dtype=torch.float32, targets="all-linear")
    plain, ours = (unet_passes(fuse=fuse, dtype=torch.bfloat16, targets="all-linear") for fuse in (False, True))
    for place in (0, 1):
        assert apart(ours[place], truth[place]) < 1.4 * apart(plain[place], truth[place])


def test_block_with_a_mask_uses_diffusers_code() -> None:
    from diffusers.models.attention import BasicTransformerBlock

    torch.manual_seed(0)
    block = BasicTransformerBlock(32, 2, 16, cross_attention_dim=24, activation_fn="geglu").to(DEVICE).eval().requires_grad_(False)
    mine = copy.deepcopy(block)
    unet_blocks.fuse(mine)
    hidden, text = random(2, 6, 32), random(2, 5, 24, seed=1)
    torch.testing.assert_close(mine(hidden, encoder_hidden_states=text), block(hidden, encoder_hidden_states=text), rtol=1e-4, atol=1e-5)
    mask = torch.zeros(2, 1, 5, device=DEVICE)
    mask[:, :, 3:] = -10000.0
    for each in (mine, block):
        each.attn1.set_processor(block.attn1.processor)
        each.attn2.set_processor(block.attn2.processor)
    masked = [each(hidden, encoder_hidden_states=text, encoder_attention_mask=mask) for each in (mine, block)]
    torch.testing.assert_close(*masked, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(masked[0], block(hidden, encoder_hidden_states=text), atol=1e-3)


def test_other_blocks_than_stable_diffusions_stay() -> None:
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D

    model = nn.ModuleList(
        [
            ResnetBlock2D(in_channels=32, temb_channels=8, output_scale_factor=2.0, groups=4),
            ResnetBlock2D(in_channels=32, temb_channels=8, time_embedding_norm="scale_shift", groups=4),
            BasicTransformerBlock(32, 2, 16, norm_type="ada_norm", num_embeds_ada_norm=10),
        ]
    )
    unet_blocks.fuse(model)
    assert [type(block) for block in model] == [ResnetBlock2D, ResnetBlock2D, BasicTransformerBlock]


@pytest.mark.parametrize("setting", ["auto", "on"])
def test_missing_kernels_are_reported_only_to_who_asked_for_them(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    config = configuration(Path("a.safetensors"), Path("dataset"), Path("runs"), {"training.fused": setting})
    context = Context(config, torch.device("cuda"), torch.bfloat16)
    monkeypatch.setattr(fused_blocks, "kernels_problem", fused_blocks.kernels_problem.__wrapped__)  # without its cache
    monkeypatch.setattr(kernel_check, "kernel_problem", lambda *_: "no C compiler was found")
    assert not accelerations.is_available("fused_blocks", context)
    messages = accelerations.warnings(context)
    monkeypatch.setitem(sys.modules, "trainer.compute.fused_blocks.kernel_check", None)  # as where there is no Triton
    assert not accelerations.is_available("fused_blocks", context)
    messages += accelerations.warnings(context)
    assert len(messages) == (2 if setting == "on" else 0)
    assert all("training.fused" in message for message in messages)
    assert setting == "auto" or "C compiler" in messages[0]


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("fuses", "targets"), [pytest.param(True, "all-linear+conv", marks=pytest.mark.long), (False, "all-linear+conv"), (False, "all-linear")]
)
def test_memory_estimate_matches_fused_blocks(
    tiny_checkpoint: Path, dataset_folder: Path, tmp_path: Path, fuses: bool, targets: str
) -> None:
    from tests.unit.plan.helpers import bytes_kept_for_backward

    checkpoint = open_checkpoint(str(tiny_checkpoint))
    family = family_of(checkpoint)
    settings = configuration(tiny_checkpoint, dataset_folder, tmp_path, {"network.targets": targets})
    counted = memory_of(settings, family, checkpoint, (128, 128), torch.float32, fused=fuses)["activations"] * 1e9
    real: Any = family.load_denoiser(checkpoint, torch.float32)
    real.to(memory_format=torch.channels_last)
    if fuses:
        repeated = len(denoiser_setup.blocks(real))
        unet_blocks.fuse(real)
        assert len(denoiser_setup.blocks(real)) == repeated > 0  # of which checkpointing computes one at a time anew
    adapter.adapt(real, family.denoiser_targets(real, targets), settings.network, 0)
    assert counted == pytest.approx(bytes_kept_for_backward(real.train(), 16, 1), rel=0.02 if fuses else 0.035)


@pytest.mark.seconds
def test_gpu_plan_counts_fused_blocks(shallow_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset_folder = make_dataset(tmp_path, 1, resolution=512)
    checkpoint = open_checkpoint(str(shallow_checkpoint))
    monkeypatch.setattr("trainer.plan.planning.usable_memory_gb", lambda device: 80.0)
    found = {}
    for problem, settings in (("", "auto"), ("no C compiler", "auto"), ("", "off")):
        monkeypatch.setattr("trainer.compute.fused_blocks.kernels_problem", lambda *_, problem=problem: problem)
        chosen = configuration(shallow_checkpoint, dataset_folder, tmp_path, {"training.fused": settings, "training.device": "cuda"})
        made = make_plan(chosen, open_dataset(dataset_folder), family_of(checkpoint), checkpoint, torch.device("cuda"), "bf16")
        found[problem, settings] = made
        untried = make_plan(
            chosen, open_dataset(dataset_folder), family_of(checkpoint), checkpoint, torch.device("cuda"), "bf16", try_kernels=False
        )
        assert not untried.fused
    assert [made.fused for made in found.values()] == [True, False, False]
    less, *others = [made.memory["activations"] for made in found.values()]
    assert less < 0.9 * others[0] and others[0] == others[1]


def recorded(compute: Callable[[], LossAndGradients]) -> tuple[Callable[[], None], LossAndGradients]:
    kept = compute()

    def replay() -> None:
        loss, gradients = compute()
        kept[0].copy_(loss)
        for place, gradient in zip(kept[1], gradients, strict=True):
            place.copy_(gradient)  # type: ignore[union-attr,arg-type]

    return replay, kept


def test_low_precision_copies_follow_their_weights() -> None:
    torch.manual_seed(0)
    layers = [CastingLinear(6, 5, bias=False), CastingConv2d(5, 4, 1, bias=False)]
    model, other = nn.ModuleList(layers), nn.Parameter(torch.ones(4))
    parameters = [*model.parameters(), other]

    def compute(inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = layers[0](inputs["x"])
        loss = (layers[1](hidden.t()[None, :, :, None])[0, :, :, 0] * other[:, None]).float().square().sum()
        return loss, loss

    copies = LowPrecisionCopies(model, torch.bfloat16)
    passes = RecordedPasses(compute, parameters, lambda reason: pytest.fail(reason), record=recorded, copies=copies)
    plain = RecordedPasses(compute, parameters, lambda reason: pytest.fail(reason), record=recorded)
    for turn in range(4):
        inputs = {"x": torch.randn(3, 6).bfloat16()}
        found = []
        for way in (passes, plain):
            for parameter in parameters:
                parameter.grad = None
            loss = float(way.run(inputs))
            way.run(inputs)  # gradients add up
            found.append((loss, [None if each.grad is None else each.grad.clone() for each in parameters]))
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-6), turn
        for mine, theirs in zip(found[0][1], found[1][1], strict=True):
            assert mine is not None and mine.dtype == torch.float32
            torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-2)
        with torch.no_grad():
            for parameter in parameters:
                parameter.mul_(1.5)
    assert not [name for parameter in parameters for name in vars(parameter)]  # outside of a pass the weights are themselves


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU")
@pytest.mark.parametrize("more", [{}, {"training.gradient_checkpointing": True}, {"training.cuda_graphs": "off"}, {"network.dora": True}])
def test_fused_blocks_train_like_plain_ones_on_a_gpu(tmp_path: Path, more: dict[str, Any]) -> None:
    folder = make_dataset(tmp_path, 5)
    common = {"training.batch_size": 2, "training.device": "cuda", "training.precision": "bf16", "optimizer.lr": 1e-4, **more}
    runs = [train_here(configuration(BASE_FILE, folder, tmp_path / way, {**common, "training.fused": way})) for way in ("off", "on")]
    assert not [event for event in runs[1].told if isinstance(event, events.Warning_)]
    same_training(*runs, loss=1e-2, norm=5e-2)
