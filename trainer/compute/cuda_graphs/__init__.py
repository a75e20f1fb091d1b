"""CUDA graphs: the forward and backward pass recorded once for each set of shapes, and replayed. Imports torch: import this module late.

At batch size 1 a fast GPU has finished a kernel before Python has started the next one. A replay starts all kernels of a pass, some
thousands, with one call; see "Accelerating PyTorch with CUDA Graphs" (Nguyen, Carilli et al. 2021).
"""

from __future__ import annotations

import torch

from ...config.run_config import RunConfig
from ...runs.run_plan import RunPlan
from ..acceleration import Acceleration, Batch, Context, EagerPass, ForwardBackward, Inputs, gradients_apart
from ..casting import LowPrecisionCopies
from ..self_check import CHECKED_PASSES
from .recorded_passes import RecordedPasses


class CudaGraphs(Acceleration):
    """``training.cuda_graphs``.

    A text encoder that is trained works on prompts of changing lengths, dropout draws new random numbers in every pass, and swapped blocks
    have other memory each time: none of these can be recorded.
    """

    title = "CUDA graphs"

    def is_wanted(self, context: Context) -> bool:
        """On a GPU, for passes that are always the same."""
        config = context.config
        can_repeat = not (config.trains_text or config.network.dropout or config.training.swap_blocks)
        return context.device.type == "cuda" and config.training.cuda_graphs != "off" and can_repeat

    def is_on(self, config: RunConfig, plan: RunPlan) -> bool:
        """When the plan found room for the recordings."""
        return plan.cuda_graphs

    def extra_bytes(self, denoiser: torch.nn.Module, context: Context) -> int:
        """The gradients that all recordings leave, and those that a new recording is compared with.

        Both have the dtype in which passes compute; DoRA's are fp32.
        """
        trained = sum(parameter.numel() for parameter in denoiser.parameters() if parameter.requires_grad)
        return 2 * trained * (4 if context.config.network.dora else context.dtype.itemsize)

    def wrap(self, forward_backward: ForwardBackward, eager: EagerPass, context: Context) -> ForwardBackward:
        """Record passes, and replay them."""

        def compute(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
            loss = eager.loss(inputs) * inputs["loss_weight"]
            return loss, eager.scale(loss)

        def warn(reason: str) -> None:
            context.warn(f"CUDA graphs failed, so training continues without them, at normal speed ({reason}).")

        copies = LowPrecisionCopies(eager.network, context.dtype)
        # a recording is compared with one eager pass, and compiled blocks compare several with plain ones: those come first
        eager_passes = CHECKED_PASSES if context.config.training.compile else 1
        recorded = RecordedPasses(compute, eager.parameters, warn, copies=copies, eager_passes=eager_passes)

        def replayed(batch: Batch) -> torch.Tensor:
            inputs = {**eager.to_device(batch), "loss_weight": torch.full((), batch.loss_weight, device=context.device)}
            return recorded.run(inputs, lambda: gradients_apart(forward_backward, batch, eager.parameters))

        return replayed
