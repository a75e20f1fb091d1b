"""Which LoRA belongs to an Anima model with how many blocks."""

from __future__ import annotations

import pytest

from trainer.lorafile.anima_depth import DEPTH_KEY, depth_mismatch, positions


@pytest.mark.parametrize(
    ("blocks", "model_blocks", "stated", "message"),
    [
        (28, 28, "", ""),
        (21, 28, "", ""),  # trained on some of the blocks
        (28, 40, "", "made for Anima with 28 blocks and the model has 40"),
        (21, 40, "", "made for Anima with 28 blocks and the model has 40"),
        (40, 40, "", ""),
        (21, 40, "40", ""),
        (28, 40, "28", "made for Anima with 28 blocks and the model has 40"),
        (28, 40, "many", "made for Anima with 28 blocks and the model has 40"),
        (40, 28, "", "made for Anima with 40 blocks and the model has 28"),
        (28, 52, "", "made for Anima with 28 blocks and the model has 52"),
        (40, 52, "", "made for Anima with 40 blocks and the model has 52"),
        (28, 2, "", "made for Anima with 28 blocks and the model has 2"),
        (1, 2, "", ""),  # a model of no released depth
        (0, 40, "", ""),  # changes no block
        (28, 0, "", ""),  # not a transformer
    ],
)
def test_loras_fit_models_with_the_depth_that_they_were_made_for(blocks: int, model_blocks: int, stated: str, message: str) -> None:
    error = depth_mismatch(blocks, model_blocks, {DEPTH_KEY: stated} if stated else {})
    assert (message in error.message if error else message == "") and bool(error) == bool(message)


def test_refusal_names_the_export_that_moves_the_blocks() -> None:
    moved, unknown = depth_mismatch(28, 40, {}), depth_mismatch(28, 52, {})
    assert moved and "--blocks 40" in moved.hint
    assert unknown and "--blocks" not in unknown.hint


def test_blocks_keep_their_order_in_the_larger_model() -> None:
    # the block of Anima that each block of Anima-2.9B comes from, as its expand_manifest.json lists them; copies come after their source
    sources = [0, 1, 1, 2, 3, 3, 4, 5, 5, 6, 7, 7, 8, 9, 9, 10, 11, 11, 12, 13, 14, 14, 15, 16, 16, 17, 18, 18, 19, 20, 20, 21, 22, 22, 23]
    sources += [24, 24, 25, 26, 27]
    assert positions(40) == [sources.index(block) for block in range(28)]
