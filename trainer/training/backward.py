"""Forward and backward passes: as they are written, with compiled blocks, or recorded; the fast ones only while they are right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..adapters import adapter
from ..compute.denoiser_setup import compile_blocks, not_compiled, undo_compile
from ..core import seeding
from ..core.diagnosis import first_line, is_out_of_memory
from ..runs import events
from . import micro_batch
from .batches import Micro
from .job import Job

if TYPE_CHECKING:
    import torch

    from ..compute.cuda_graphs import Captured


class Passes:
    """Adds gradients to those of ``network``, which is ``unet`` and what else has LoRA.

    ``inputs`` puts a batch on the device, ``loss_of`` computes the loss from that. Compiled blocks and recorded passes are compared with
    those as written, and given up, with a warning, where they fail or differ.
    """

    def __init__(
        self,
        job: Job,
        accelerator: Any,
        network: Any,
        unet: Any,
        inputs: Callable[[micro_batch.MicroBatch], dict[str, Any]],
        loss_of: Callable[[dict[str, Any]], torch.Tensor],
    ) -> None:
        self._job, self._accelerator, self._network, self._unet = job, accelerator, network, unet
        self._inputs, self._loss_of = inputs, loss_of
        self._parameters = adapter.parameters(network)
        self._step = 0
        self._compiled = job.config.training.compile
        self._compared: set[tuple[int, ...]] = set()  # the shapes of latents for which compiled blocks gave the gradients of plain ones
        if self._compiled:
            compile_blocks(unet)
        self._captured = self.capturing() if job.plan.cuda_graphs else None

    def gradients(self, micro_batches: Sequence[Micro], step: int) -> torch.Tensor:
        """Add up the gradients of ``micro_batches``, with ``step`` steps done; the mean of their losses.

        Without compiled blocks from the first on that fails.
        """
        self._step = step
        if not self._compiled:
            return self._passed(micro_batches)
        size = self._job.config.training.micro_batch_size
        shapes = {tuple(part.latents.shape) for micro in micro_batches for part in micro.batch.split(size)}
        try:
            total = self._passed(micro_batches)
            if shapes <= self._compared or self._job.config.network.dropout or self._same_without_compiler(micro_batches):
                self._compared |= shapes
                return total
            reason = "its gradients were not those of the blocks as written"
        except Exception as error:  # a compiler can fail in any way, and in the backward pass too
            if is_out_of_memory(error):
                raise
            reason = first_line(error)
        self._compiled = False
        undo_compile(self._unet)
        if self._captured is not None:
            self._captured.forget()
        self._clear()
        self._job.emit(events.Warning_(f"torch.compile failed, so the run goes on without it, at normal speed ({reason})."))
        return self._passed(micro_batches)

    def _same_without_compiler(self, micro_batches: Sequence[Micro]) -> bool:
        """Whether the gradients that are there are also those of blocks as they were written, within what bf16 rounds; they stay.

        A compiler can be wrong without failing. Asked for each new shape, for which it compiles anew, with the weights as they are and
        with weights of which none is next to zero; dropout draws other numbers in compiled blocks, so with it nothing can be compared.
        """
        from ..compute.self_check import gradients_agree, weights_that_count

        compiled = self._taken()
        same = gradients_agree(compiled, self._plain(micro_batches))
        if same:
            with weights_that_count(self._parameters) as changed:
                if changed:
                    self._clear()
                    self._passed(micro_batches)
                    same = gradients_agree(self._taken(), self._plain(micro_batches))
        for parameter, gradient in zip(self._parameters, compiled, strict=True):
            parameter.grad = gradient
        return same

    def _plain(self, micro_batches: Sequence[Micro]) -> list[torch.Tensor | None]:
        self._clear()
        with not_compiled(self._unet):
            self._passed(micro_batches, as_written=True)
        return [parameter.grad for parameter in self._parameters]

    def _taken(self) -> list[torch.Tensor | None]:
        """The gradients that are there; copies where the next pass writes to their places."""
        gradients = [parameter.grad for parameter in self._parameters]
        return gradients if self._captured is None else [None if gradient is None else gradient.clone() for gradient in gradients]

    def _passed(self, micro_batches: Sequence[Micro], *, as_written: bool = False) -> torch.Tensor:
        import torch

        total = torch.zeros((), device=self._job.device)
        for index, micro in enumerate(micro_batches):
            if self._job.config.network.dropout:  # drawn from where in the run this is, so that a continued run draws the same
                where = (self._step, index, self._job.processes.rank) if self._job.processes.rank else (self._step, index)
                torch.manual_seed(seeding.derive_seed(self._job.config.training.seed, "dropout", *where) % 2**63)
            for part in micro.batch.split(self._job.config.training.micro_batch_size):
                # the loss is a mean over images: a part counts by how many of them it has
                if self._captured is not None:
                    share = micro.scale / micro.parts * (part.size / micro.batch.size)
                    inputs = {**self._inputs(part), "share": torch.full((), share, device=self._job.device)}
                    total += self._captured.run(inputs, as_written=as_written)
                    continue
                loss = self._loss_of(self._inputs(part)) * micro.scale / micro.parts
                loss = loss if part is micro.batch else loss * (part.size / micro.batch.size)
                self._accelerator.backward(loss)
                total += loss.detach()
        return total

    def _clear(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def capturing(self) -> Captured:
        """What records these passes."""
        from ..compute.casting import LowCopies
        from ..compute.cuda_graphs import Captured

        def compute(inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
            loss, scaler = self._loss_of(inputs) * inputs["share"], self._accelerator.scaler
            return loss, loss if scaler is None else scaler.scale(loss)

        def failed(reason: str) -> None:
            self._job.emit(events.Warning_(f"CUDA graphs failed, so the run goes on without them, at normal speed ({reason})."))

        return Captured(compute, self._parameters, failed, copies=LowCopies(self._network, self._job.dtype))
