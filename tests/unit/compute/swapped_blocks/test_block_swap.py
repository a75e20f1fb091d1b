"""A transformer whose blocks are swapped computes exactly what it computes without, and holds as few blocks as is stated."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.compute.swapped_blocks.simulated_device import SimulatedStream
from tests.unit.training_helpers import configuration
from trainer.adapters import adapter
from trainer.compute import swapped_blocks
from trainer.compute.acceleration import Context
from trainer.compute.denoiser_setup import enable_checkpointing, sequential_blocks
from trainer.compute.quantised_base.quantise import quantise
from trainer.compute.swapped_blocks.block_swap import BlockSwap
from trainer.compute.swapped_blocks.copy_stream import CopyStream, chunk_sizes
from trainer.families.anima.anima_family import FAMILY
from trainer.families.anima.denoiser import ImageCosmosTransformer

BLOCKS, WIDTH, TEXT = 5, 32, 16
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def transformer() -> Any:
    """A random transformer of Anima's architecture without adapters."""
    torch.manual_seed(0)
    denoiser = ImageCosmosTransformer(
        in_channels=16,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=WIDTH // 2,
        num_layers=BLOCKS,
        text_embed_dim=TEXT,
        adaln_lora_dim=8,
        max_size=(1, 32, 32),
        patch_size=(1, 2, 2),
        rope_scale=(1.0, 4.0, 4.0),
        concat_padding_mask=True,
        extra_pos_embed_type=None,
    )
    return denoiser.train().requires_grad_(False)


def with_lora(denoiser: Any, first: int = 0) -> Any:
    """LoRA on the blocks from ``first`` on, whose up matrices are not zero: all gradients depend on all weights."""
    names = [name for name in FAMILY.denoiser_targets(denoiser, "all-linear") if int(name.split(".")[1]) >= first]
    adapter.inject(denoiser, names, rank=2, alpha=2, seed=1)
    for number, pair in enumerate(adapter.pairs(denoiser)):
        with torch.no_grad():
            pair.up.copy_(torch.randn(pair.up.shape, generator=torch.Generator().manual_seed(number)) * 0.1)
    return denoiser


def swap(denoiser: Any, count: int, stream: CopyStream) -> None:
    blocks = sequential_blocks(denoiser)
    BlockSwap(denoiser, [blocks[index] for index in swapped_blocks.spread(count, len(blocks))], stream)


def predict(denoiser: Any, seed: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    latents, prompt = torch.randn(2, 16, 4, 6, generator=generator), torch.randn(2, 7, TEXT, generator=generator)
    result: torch.Tensor = denoiser(latents, torch.tensor([0.3, 0.8]), prompt)[0]
    return result


def two_passes(denoiser: Any) -> list[torch.Tensor]:
    """Losses of two forward and backward passes, and the gradients after each."""
    values = []
    for seed in (2, 3):
        loss = predict(denoiser, seed).square().mean()
        loss.backward()
        values += [loss.detach(), *(parameter.grad.clone() for parameter in adapter.parameters(denoiser))]  # type: ignore[union-attr]
    return values


@pytest.mark.parametrize("base", ["same", "int8", "fp8"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("count", [1, 2, 3, BLOCKS])
def test_losses_and_gradients_are_those_without_swapping(transformer: Any, count: int, checkpointing: bool, base: str) -> None:
    results, stream = [], SimulatedStream()
    for swapped in (False, True):
        denoiser = copy.deepcopy(transformer)
        if base != "same":
            quantise(denoiser, base, CPU)
        if swapped:
            swap(denoiser, count, stream)
        if checkpointing:
            enable_checkpointing(denoiser, draws_random_numbers=False)
        results.append(two_passes(with_lora(denoiser)))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert all(bool(value.isfinite().all()) for value in results[1]) and any(value.any() for value in results[1][1:])


@pytest.mark.parametrize("base", ["same", "int8"])
@pytest.mark.parametrize("count", [1, 2, 3, BLOCKS])
def test_device_holds_as_many_bytes_of_blocks_as_estimated(transformer: Any, count: int, base: str) -> None:
    denoiser, stream = copy.deepcopy(transformer), SimulatedStream()
    if base != "same":
        quantise(denoiser, base, CPU)
    config = configuration(Path("a"), Path("b"), Path("c"), {"training.swap_blocks": count})
    saved = -swapped_blocks.SwappedBlocks().extra_bytes(denoiser, Context(config, CPU, torch.float32))
    tensors = [[*block.parameters(), *block.buffers()] for block in sequential_blocks(denoiser)]
    whole = sum(sum(tensor.nbytes for tensor in block) for block in tensors) // BLOCKS * count
    padding = 2 * 256 * len(tensors[0])  # each tensor of the two blocks begins at a multiple of 256 bytes
    swap(denoiser, count, stream)
    enable_checkpointing(denoiser, draws_random_numbers=False)
    two_passes(with_lora(denoiser))
    assert whole - saved <= stream.peak <= whole - saved + padding
    assert saved == max(0, whole - 2 * whole // count)


def test_order_of_copies_with_and_without_checkpointing(transformer: Any) -> None:
    logs = []
    for checkpointing in (False, True):
        denoiser, stream = copy.deepcopy(transformer), SimulatedStream()
        swap(denoiser, 4, stream)
        if checkpointing:
            enable_checkpointing(denoiser, draws_random_numbers=False)
        two_passes(with_lora(denoiser))
        logs.append(stream.log)
    forward = [("copy", 0), ("copy", 1), ("release", 0), ("copy", 2), ("release", 1), ("copy", 3)]
    backward = [("release", 3), ("copy", 1), ("release", 2), ("copy", 0)]
    forward_again = [("release", 0), ("copy", 2), ("release", 1), ("copy", 3)]  # 0 and 1 are still there
    assert logs == [[*forward, *backward, *forward_again, *backward]] * 2


def test_passes_without_gradients_start_over(transformer: Any) -> None:
    denoiser, stream = copy.deepcopy(transformer), SimulatedStream()
    expected = predict(with_lora(copy.deepcopy(transformer)))
    swap(denoiser, 3, stream)
    with_lora(denoiser)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(predict(denoiser), expected)
    a_pass = [("release", 0), ("copy", 2), ("release", 1), ("copy", 0), ("release", 2), ("copy", 1)]
    assert stream.log == [("copy", 0), ("copy", 1), *a_pass, *a_pass][: len(stream.log)] and len(stream.log) == 12
    assert torch.equal(predict(denoiser), expected)  # and with gradients after that


def test_backward_pass_ends_at_the_first_trained_block(transformer: Any) -> None:
    expected = two_passes(with_lora(copy.deepcopy(transformer), first=3))
    denoiser, stream = copy.deepcopy(transformer), SimulatedStream()
    swap(denoiser, BLOCKS, stream)
    values = two_passes(with_lora(denoiser, first=3))
    assert all(torch.equal(one, other) for one, other in zip(values, expected, strict=True))
    assert stream.log[-2:] == [("release", 4), ("copy", 2)]  # fetched beside 3, the last one with a gradient


def test_pass_after_one_that_failed_is_right(transformer: Any) -> None:
    expected = two_passes(with_lora(copy.deepcopy(transformer)))
    denoiser, stream = copy.deepcopy(transformer), SimulatedStream()
    swap(denoiser, 3, stream)
    with_lora(denoiser)
    out_of_memory = adapter.parameters(denoiser)[0].register_hook(lambda gradient: gradient.new_empty(1).view(7))
    with pytest.raises(RuntimeError, match="shape"):
        predict(denoiser).sum().backward()
    out_of_memory.remove()
    for parameter in adapter.parameters(denoiser):
        parameter.grad = None
    assert all(torch.equal(one, other) for one, other in zip(two_passes(denoiser), expected, strict=True))


def query_weights(denoiser: Any) -> list[torch.Tensor]:
    """One weight of each block."""
    return [block.attn1.to_q.weight for block in denoiser.transformer_blocks]


def test_released_memory_is_given_back(transformer: Any) -> None:
    expected = two_passes(with_lora(copy.deepcopy(transformer)))
    denoiser = copy.deepcopy(transformer)
    weights = query_weights(denoiser)
    swap(denoiser, BLOCKS, CopyStream(CPU))
    assert [weight.untyped_storage().nbytes() for weight in weights] == [0] * BLOCKS
    assert all(torch.equal(one, other) for one, other in zip(two_passes(with_lora(denoiser)), expected, strict=True))
    assert [weight.untyped_storage().nbytes() > 0 for weight in weights] == [True, True, False, False, False]


def test_simulated_device_shows_what_is_read_too_early_or_too_late(transformer: Any) -> None:
    denoiser = copy.deepcopy(transformer)
    weights = query_weights(denoiser)
    swap(denoiser, BLOCKS, SimulatedStream())
    two_passes(with_lora(denoiser))
    assert [bool(weight.isnan().all()) for weight in weights] == [False, False, True, True, True]


def test_moving_the_denoiser_leaves_swapped_blocks_away(transformer: Any) -> None:
    denoiser = copy.deepcopy(transformer)
    swap(denoiser, BLOCKS, CopyStream(CPU))
    with_lora(denoiser).to(CPU).to(memory_format=torch.channels_last).requires_grad_(True).requires_grad_(False)
    frozen = [parameter for block in sequential_blocks(denoiser) for name, parameter in block.named_parameters() if "lora" not in name]
    assert frozen and all(parameter.untyped_storage().nbytes() == 0 for parameter in frozen)


def test_swapped_blocks_are_evenly_spread() -> None:
    assert swapped_blocks.spread(0, 4) == []
    assert swapped_blocks.spread(4, 4) == [0, 1, 2, 3]
    assert swapped_blocks.spread(2, 6) == [2, 5]
    assert all(len(swapped_blocks.spread(count, 28)) == count for count in range(29))


def test_chunks_of_pinned_memory_waste_little() -> None:
    block = 138_417_664  # bytes of a block of Anima in bf16
    assert chunk_sizes(block) == [2**27, 2**22, 5632]
    for size in (1, 2**20, 2**20 + 1, 3 * 2**20 - 1, 10**9):
        sizes = chunk_sizes(size)
        assert sum(sizes) == size and all(chunk & (chunk - 1) == 0 for chunk in sizes[:-1])
        assert sizes[-1] < 2**20 or sizes[-1] & (sizes[-1] - 1) == 0
