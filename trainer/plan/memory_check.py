"""Whether a run fits into memory, and which settings would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..core.errors import UserError
from ..core.messages import Message, Setting, join_messages
from ..runs.run_plan import RunPlan

_TOLERANCE = 1.1  # how far the estimate can be off
_AUTO = Setting("training.memory", "auto")
TIGHT = Message(
    "It may run out of memory, and on Windows it becomes many times slower, because the driver moves what does not fit into main memory. ",
    _AUTO,
    " chooses settings that fit.",
)


def _memory_savers(plan: RunPlan) -> list[Setting]:
    """The cheapest first."""
    return [
        Setting("training.precision", "bf16"),
        Setting("training.gradient_checkpointing", True),
        Setting("training.micro_batch_size", 1),
        *([Setting("training.swap_blocks", plan.swappable_blocks)] if plan.swappable_blocks else []),
        Setting("training.base_precision", "int8"),
        Setting("network.targets", "attention"),
    ]


def require_memory(plan: RunPlan, usable_gb: float, estimate_with: Callable[[Sequence[Setting]], float]) -> None:
    """Refuse a run that cannot fit into ``usable_gb``, and name the settings that would make it fit.

    ``estimate_with`` gives the memory in GB with some settings changed. As the estimate can be a tenth too high, a run that is a tenth too
    large passes. Raises UserError of the kind ``memory``.
    """
    if plan.memory_gb <= usable_gb * _TOLERANCE:
        return
    savers = _memory_savers(plan)
    for count in range(1, len(savers) + 1):
        needed = estimate_with(savers[:count])
        if needed <= usable_gb * _TOLERANCE:
            changes = join_messages(", ", savers[:count])
            hint = Message(f"It would fit ({needed:.1f} GB) with ", changes, "; ", _AUTO, " chooses such settings.")
            break
    else:
        hint = Message("No setting makes it fit: prepare the dataset at a smaller resolution, or train on a smaller model or a larger GPU.")
    where = "this machine" if plan.device == "cpu" else "the GPU"
    message = f"This run needs about {plan.memory_gb:.1f} GB of memory, and {where} has {usable_gb:.1f} GB for it."
    raise UserError(message, hint, kind="memory")


def savings(plan: RunPlan, estimate_with: Callable[[Sequence[Setting]], float]) -> list[tuple[Setting, float]]:
    """The settings that would save memory, each with the memory in GB that the run would then need; the most helpful first."""
    needed_with = [(change, estimate_with([change])) for change in _memory_savers(plan)]
    return sorted(((change, needed) for change, needed in needed_with if needed < plan.memory_gb - 0.01), key=lambda pair: pair[1])
