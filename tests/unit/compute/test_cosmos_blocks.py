"""The blocks of Anima's transformer in few operations, compared with diffusers' own."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_cosmos import CosmosTransformerBlock
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.unit.training_helpers import configuration
from trainer.compute import accelerations, flash_attention
from trainer.compute.acceleration import Context
from trainer.compute.cosmos_blocks import transformer_block
from trainer.compute.cosmos_blocks.transformer_block import FastCosmosBlock, replace_blocks, zero_rows
from trainer.compute.lora_layers import with_lora
from trainer.families import open_checkpoint
from trainer.families.anima.anima_family import FAMILY

WIDTH, TEXT, TOKENS = 32, 24, 12
LORA = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_v", "ff.net.2")
MODULATION = ("norm1.linear_1", "norm2.linear_2", "norm3.linear_2")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Gaussian numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_block(**changes: Any) -> Any:
    """A frozen block of diffusers' with two heads."""
    torch.manual_seed(0)
    settings = {"adaln_lora_dim": 8, "qk_norm": "rms_norm", "out_bias": False, **changes}
    block = CosmosTransformerBlock(2, WIDTH // 2, TEXT, **settings)
    for attention in (block.attn1, block.attn2):
        for norm in (attention.norm_q, attention.norm_k):
            nn.init.normal_(norm.weight, 1, 0.3)
    return block.requires_grad_(False)


def replaced(block: Any, dtype: torch.dtype = torch.float32) -> Any:
    """A copy of ``block`` in few operations."""
    holder = nn.ModuleList([copy.deepcopy(block)])
    replace_blocks(holder, dtype)
    return holder[0]


def with_layers(block: Any, names: tuple[str, ...], dtype: torch.dtype = torch.float32) -> Any:
    """``block`` with the same LoRA beside each layer of ``names``."""
    for place, name in enumerate(names):
        parent, _, last = name.rpartition(".")
        torch.manual_seed(place)
        layer = with_lora(block.get_submodule(name), 4, 1.0, 0.0)
        nn.init.normal_(layer.lora_B.weight, std=0.2)
        setattr(block.get_submodule(parent), last, layer.to(dtype))
    return block


def inputs(batch: int, dtype: torch.dtype = torch.float32) -> list[Any]:
    """Tokens, text of 40 rows of which those after the prompts are zeros, time, modulation, and a rotation."""
    text = random(batch, 40, TEXT, seed=1)
    text[0, 9:], text[-1, 11:] = 0, 0
    angles = torch.rand(TOKENS, WIDTH // 4, generator=torch.Generator().manual_seed(2)).repeat(1, 2) * 6
    time, modulation = random(batch, WIDTH, seed=3), random(batch, 3 * WIDTH, seed=4)
    moved = [each.to(dtype) for each in (random(batch, TOKENS, WIDTH), text, time, modulation)]
    return [moved[0].requires_grad_(), *moved[1:], (torch.cos(angles), torch.sin(angles))]


def result_and_gradients(block: Any, given: list[Any]) -> list[torch.Tensor]:
    """The block's result, and the gradients of its first input and of all that is trained."""
    computed = block(*given)
    weights = torch.linspace(-1, 1, computed.numel()).view(computed.shape)
    trained = [parameter for parameter in block.parameters() if parameter.requires_grad]
    return [computed.detach(), *torch.autograd.grad((computed.float() * weights).sum(), [given[0], *trained])]


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative to the size of ``other``."""
    one, other = one.detach().double(), other.detach().double()
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("names", [LORA, (*LORA, *MODULATION)], ids=["LoRA", "with modulation"])
@pytest.mark.parametrize("batch", [1, 2])
def test_result_and_gradients_are_those_of_diffusers(batch: int, names: tuple[str, ...]) -> None:
    block = random_block()
    fast = with_layers(replaced(block), names)
    assert type(fast) is FastCosmosBlock
    plain = result_and_gradients(with_layers(block, names), inputs(batch))
    for mine, theirs in zip(result_and_gradients(fast, inputs(batch)), plain, strict=True):
        assert float(theirs.norm()) > 0 and difference(mine, theirs) < 5e-6


def test_in_bf16_it_is_as_accurate_as_diffusers() -> None:
    block = random_block().bfloat16()
    exact = result_and_gradients(with_layers(copy.deepcopy(block).double(), LORA, torch.float64), inputs(2, torch.float64))
    fast = result_and_gradients(with_layers(replaced(block, torch.bfloat16), LORA, torch.bfloat16), inputs(2, torch.bfloat16))
    plain = result_and_gradients(with_layers(block, LORA, torch.bfloat16), inputs(2, torch.bfloat16))
    together = [sum(difference(one, true) ** 2 for one, true in zip(ours, exact, strict=True)) ** 0.5 for ours in (fast, plain)]
    assert 0 < together[0] < 1.2 * together[1] < 0.3


def test_gradient_checkpointing_computes_the_same(tiny_anima: Path) -> None:
    from trainer.compute.denoiser_setup import enable_checkpointing

    found = []
    for checkpointing in (False, True):
        denoiser = anima(tiny_anima)
        replace_blocks(denoiser, torch.float32)
        if checkpointing:
            enable_checkpointing(denoiser, draws_random_numbers=False)
        leaf = random(1, 16, 8, 8).requires_grad_()
        (by_leaf,) = torch.autograd.grad(velocity(denoiser, leaf).square().sum(), leaf)
        found.append(by_leaf)
    assert torch.equal(*found)


def test_the_whole_transformer_computes_the_same(tiny_anima: Path) -> None:
    results = []
    for names in ([], ["cosmos_blocks"]):
        denoiser = anima(tiny_anima)
        context = Context(configuration(tiny_anima, Path("dataset"), Path("runs")), torch.device("cpu"), torch.float32)
        accelerations.prepare(names, denoiser, context)
        assert {type(block) is FastCosmosBlock for block in denoiser.transformer_blocks} == {bool(names)}
        results.append(velocity(denoiser, random(2, 16, 8, 8)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


def test_fewer_numbers_are_written_to_memory() -> None:
    block = random_block()
    written = []
    for each in (replaced(block), block):
        with WrittenNumbers() as counter:
            result_and_gradients(each, inputs(1))
        written.append(counter.count)
    assert written[0] < 0.7 * written[1]


@pytest.mark.parametrize("changes", [{"img_context": True}, {"before_proj": True}, {"qk_norm": "layer_norm"}], ids=str)
def test_blocks_of_other_models_stay_as_they_are(changes: dict[str, Any]) -> None:
    assert type(replaced(random_block(**changes))) is CosmosTransformerBlock


def test_inputs_of_other_models_are_computed_by_diffusers() -> None:
    block, more = random_block(), random(1, TOKENS, WIDTH, seed=5)
    assert difference(replaced(block)(*inputs(1), extra_pos_emb=more), block(*inputs(1), extra_pos_emb=more)) < 5e-6


def test_zero_rows_are_those_at_the_end_of_every_prompt() -> None:
    rows = torch.zeros(2, 6, 3)
    assert zero_rows(rows) == 5  # one row stays: attention needs a key
    rows[0, 1, 2], rows[1, 3, 0] = 1, -1
    assert zero_rows(rows) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counted_zero_keys_are_as_good_as_computed_ones(dtype: torch.dtype) -> None:
    def padded(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        key, value = (nn.functional.pad(each, (0, 0, 0, 50)) for each in (key, value))
        return scaled_dot_product_attention(query, key, value)

    leaves = [random(2, 3, count, 16, seed=count).to(dtype).requires_grad_() for count in (20, 7, 8)]
    leaves[2] = leaves[2][:, :, :7].detach().requires_grad_()
    found = []
    for function in (functools.partial(flash_attention.attend, zero_keys=50), padded):
        mixed = function(*leaves)
        weights = torch.linspace(-1, 1, mixed.numel()).view(mixed.shape)
        found.append([mixed, *torch.autograd.grad((mixed.float() * weights).sum(), leaves)])
    for counted, computed in zip(*found, strict=True):
        assert difference(counted, computed) < (2e-6 if dtype == torch.float32 else 0.02)


def test_a_torch_without_the_operators_computes_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer_block, "operators_agree", lambda dtype: False)
    monkeypatch.setattr(transformer_block, "attend", None)
    block = random_block()
    for mine, theirs in zip(result_and_gradients(replaced(block), inputs(2)), result_and_gradients(block, inputs(2)), strict=True):
        assert difference(mine, theirs) < 5e-6


class WrittenNumbers(TorchDispatchMode):
    """Counts the numbers that operations write: of their results, but for views."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = function(*args, **(kwargs or {}))
        read = {each.untyped_storage().data_ptr() for each in tree_leaves(args) if isinstance(each, torch.Tensor)}
        in_place = function.__name__.split(".")[0].endswith("_")
        for each in tree_leaves(results):
            if isinstance(each, torch.Tensor) and (in_place or each.untyped_storage().data_ptr() not in read):
                self.count += each.numel()
        return results


def anima(file: Path) -> Any:
    """The tiny transformer, frozen."""
    return FAMILY.load_denoiser(open_checkpoint(str(file)), torch.float32).requires_grad_(False)


def velocity(denoiser: Any, latents: torch.Tensor) -> torch.Tensor:
    """The result for two prompts of few rows."""
    text = random(len(latents), 512, 64, seed=6)
    text[:, 20:] = 0
    result: torch.Tensor = denoiser(latents, torch.full((len(latents),), 0.3), text)[0]
    return result
