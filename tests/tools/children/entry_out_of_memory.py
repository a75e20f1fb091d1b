"""The trainer's entry script with a GPU that runs out of memory in the second step, for tests of the error message."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]


def main() -> int:
    """Train the run whose folder is given, as ``trainer/entry.py`` does."""
    sys.path.insert(0, str(ROOT))
    import torch

    from trainer import entry
    from trainer.training.recipe import TrainingRecipe

    honest = TrainingRecipe.compute_loss

    def loss(self: TrainingRecipe, inputs: Any) -> torch.Tensor:
        if self.state.step:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.79 GiB")
        return honest(self, inputs)

    TrainingRecipe.compute_loss = loss  # type: ignore[method-assign]
    return entry.main()


if __name__ == "__main__":
    main()
