"""What learns: UNet and text encoders with LoRA, their optimiser and schedule, one step, and the state that it resumes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapters import adapter
from ..adapters.ema import Ema
from ..adapters.frozen_lora import merge_into
from ..adapters.norms import limit_norms, weight_norms
from ..adapters.start_from import load_lora
from ..compute.denoiser_setup import prepare_base
from ..core import seeding
from ..core.devices import return_memory
from ..core.errors import UserError
from ..objective import objective
from ..runs import events
from ..runs.states import state_folder
from . import micro_batch
from .backward import Passes
from .batches import Micro
from .job import Job, Start
from .optimizers import learning_rate, make_optimizer, make_schedule
from .text_encoders import load_trained_text, text_steps

if TYPE_CHECKING:
    import torch

_NORMS_EVERY = 10  # steps between two measurements of the weights: hundreds of small products, a step's hundredth on a fast GPU


@dataclass(frozen=True)
class Measured:
    """What one step shows, still on the device: reading it waits for the GPU. ``lr`` is the rate that the step used."""

    loss: torch.Tensor
    grad_norm: torch.Tensor
    lr: float


class Learner:
    """Loads the models and takes steps; ``step`` counts those that are done.

    ``weight_norms`` (modules,) are those after the last step, on the device; None where they were not measured.
    """

    def __init__(self, job: Job, start: Start, accelerator: Any) -> None:
        self.job = job
        self.step = start.step
        self.weight_norms: torch.Tensor | None = None
        training, optimizer, network = job.config.training, job.config.optimizer, job.config.network
        self._accelerator = accelerator
        unet = job.family.load_denoiser(job.checkpoint, job.dtype, job.unet.take_result() if job.unet else None)
        merge_into({"unet": unet}, [module for module in job.frozen if module.component == "unet"])
        prepare_base(
            unet,
            training,
            job.plan.attention,
            job.device,
            job.dtype,
            warn=lambda text: job.emit(events.Warning_(text)),
            prepacked=job.plan.prepacked,
            fused=job.plan.fused,
            draws=network.dropout > 0,
        )
        if network.unet:
            modules = job.family.denoiser_targets(unet, network.targets)
            adapter.adapt(unet, modules, network, seeding.derive_seed(training.seed, "weights") % 2**32)
        self._text = load_trained_text(job) if network.text_encoder else None
        # every model with LoRA, as one
        self._network = adapter.together(unet.to(job.device).train(), self._text.modules if self._text else {})
        return_memory(job.device)
        if job.config.base.lora and start.values is None:
            load_lora(self._network, Path(job.config.base.lora), network)
        self._pairs = list(adapter.pairs(self._network))
        self._parameters = adapter.parameters(self._network)
        lr = learning_rate(optimizer, job.family.learning_rate, network.rank)
        self._optimizer = make_optimizer(self._pairs, optimizer, lr)
        self._schedule = make_schedule(self._optimizer, optimizer, job.plan.steps)
        if hasattr(self._optimizer, "train"):
            self._optimizer.train()  # schedule-free
        self._noise_scheduler = job.family.noise_scheduler(job.prediction)
        self._ema = Ema(self._named(), training.ema_decay) if training.ema_decay else None
        self._set_aside: dict[str, Any] | None = None  # the state while other weights are shown than those that are trained
        # processes exchange gradients in ``_exchange``, for all models with LoRA at once: DDP would wrap, and wait for, each apart
        self._prepared = accelerator.prepare_model(unet, evaluation_mode=job.processes.world_size > 1)
        self._optimizer_wrapped = accelerator.prepare(self._optimizer)
        if start.values is not None:
            self._restore(start.values)
        self._passes = Passes(job, accelerator, self._network, unet, self._inputs, self._loss_of)

    @property
    def timesteps(self) -> int:
        """How many noise levels there are."""
        return int(self._noise_scheduler.config.num_train_timesteps)

    @property
    def model(self) -> Any:
        """The UNet with LoRA, for sampling."""
        return self._accelerator.unwrap_model(self._prepared)

    @property
    def tokenize(self) -> Callable[[str], dict[str, torch.Tensor]] | None:
        """What makes of a caption what a batch holds of it, where the text encoder is trained; None: batches hold conditionings."""
        return None if self._text is None else self._text.tokens

    def prompt(self, prompt: str) -> dict[str, torch.Tensor] | None:
        """The conditioning of ``prompt`` with the text encoder's weights of the moment; None when they are not trained, and the cache
        has it."""
        return None if self._text is None else self._text.prompt(prompt, self._accelerator.autocast())

    def optimise(self, micro_batches: Sequence[Micro]) -> Measured:
        """Everything of one optimiser step but the change of the weights, which is ``apply``."""
        total = self._passes.gradients(micro_batches, self.step)
        if self.job.processes.world_size > 1:
            total = self._exchange(total)
        limit = self.job.config.optimizer.max_grad_norm or math.inf
        norm = self._accelerator.clip_grad_norm_(self._parameters, limit)
        assert norm is not None
        group = self._optimizer.param_groups[0]  # as this step uses it: the schedule moves on in ``apply``
        # Prodigy's own estimate multiplies the rate
        return Measured(total, norm.detach(), float(group["lr"]) * float(group.get("d", 1.0)))

    def _exchange(self, loss: torch.Tensor) -> torch.Tensor:
        """Average the gradients over the processes, in one message; returns the average of their ``loss``."""
        import torch

        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        flat: torch.Tensor = self._accelerator.reduce(torch.cat([loss.reshape(1), *(gradient.flatten() for gradient in gradients)]), "mean")
        parts = flat[1:].split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return flat[0]

    def apply(self) -> None:
        """Change the weights. The caller holds ``between_steps``."""
        self._optimizer_wrapped.step()
        self._schedule.step()
        self._optimizer_wrapped.zero_grad(set_to_none=True)
        self.step += 1
        limit, self.weight_norms = self.job.config.network.max_norm, None
        if limit:
            self.weight_norms = limit_norms(self._pairs, limit)
        elif self.step % _NORMS_EVERY == 0 or self.step in (1, self.job.plan.steps):
            self.weight_norms = weight_norms(self._pairs)
        if self._ema is not None:
            self._ema.update(self.step)

    def state(self) -> dict[str, Any]:
        """What a run resumes from, as of the last complete step. The caller holds ``between_steps``."""
        if self._set_aside is not None:
            return self._set_aside
        scaler = self._accelerator.scaler
        return {
            "ema": self._ema.state() if self._ema is not None else {},
            "lora": adapter.state(self._network),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
        }

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the weights are those to use: the moving average, a schedule-free optimiser's own, else what they are.

        Afterwards the weights are back to the bit, and a stop in between saves them as they were.
        """
        show = self._ema.show if self._ema is not None else getattr(self._optimizer, "eval", None)
        if show is None:
            yield
            return
        with self.job.between_steps:
            self._set_aside = self.state()
            show()
        try:
            yield
        finally:
            with self.job.between_steps:
                if self._ema is None:
                    self._optimizer.train()
                adapter.load_state(self._network, self._set_aside["lora"])
                self._set_aside = None

    def weights(self) -> dict[str, torch.Tensor]:
        """Copies of the weights to use, on the CPU, by module name."""
        with self.averaged():
            return adapter.state(self._network)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within it nothing is dropped out and no gradient is kept."""
        import torch

        self._network.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._network.train()

    def squared_errors(self, batch: micro_batch.MicroBatch) -> torch.Tensor:
        """The mean squared error of each image, (batch,) in fp32, plain: no setting of the objective weighs it."""
        predicted, wanted, masks = self._predict(batch)
        return objective.mean_by_image((predicted.float() - wanted.float()).square(), masks)

    def _named(self) -> dict[str, torch.Tensor]:
        return {name: parameter for pair in self._pairs for name, parameter in pair.tensors.items()}

    def _restore(self, values: dict[str, Any]) -> None:
        try:
            adapter.load_state(self._network, values["lora"])
            if self._ema is not None:
                self._ema.load_state(values["ema"])
            self._optimizer.load_state_dict(values["optimizer"])
            self._schedule.load_state_dict(values["schedule"])
            if self._accelerator.scaler is not None and values.get("scaler"):
                self._accelerator.scaler.load_state_dict(values["scaler"])
            if not (math.isfinite(float(values["average"])) and adapter.all_finite(values["lora"])):
                raise ValueError("it holds numbers that are not finite")
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            cause = str(error).splitlines()[0] if str(error) else repr(error)
            raise UserError(
                f"The saved state {state_folder(self.job.run.checkpoints, self.step)} does not fit this run: {cause}.",
                "Delete that folder and start again: the run goes on from the state before it.",
                kind="state",
            ) from error

    def _conditions(self, batch: micro_batch.MicroBatch) -> list[dict[str, torch.Tensor]]:
        """The batch's conditionings: as they were read, or from tokens with the text encoders' weights of the moment."""
        if self._text is None:
            return batch.conditions
        learning = self._network.training and self.step < text_steps(self.job.config, self.job.plan.steps)
        with self._accelerator.autocast():
            return self._text.conditions(batch.conditions, learning=learning)

    def _predict(self, batch: micro_batch.MicroBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """What the model says and what it should have said, (batch, 4, h, w), and the masks if there are any."""
        inputs = self._inputs(batch)
        return self._predicted(inputs), inputs["wanted"], inputs["masks"]

    def _inputs(self, batch: micro_batch.MicroBatch) -> dict[str, Any]:
        """``batch`` on the device: what the UNet is given, what it should say, and how much each image, timestep and pixel counts."""
        job = self.job
        latents, noise, mixed = (tensor.to(job.device, non_blocking=True) for tensor in (batch.latents, batch.noise, batch.mixed))
        timesteps = batch.timesteps.to(job.device, non_blocking=True)
        return {
            "noisy": self._noise_scheduler.add_noise(latents, mixed, timesteps).to(job.dtype),
            "timesteps": timesteps,
            "unet": job.family.denoiser_inputs(self._conditions(batch), batch.framings, job.device, job.dtype),
            "wanted": objective.target(self._noise_scheduler, latents, noise, timesteps),
            "weights": batch.weights.to(job.device, non_blocking=True),
            "masks": None if batch.masks is None else batch.masks.to(job.device, non_blocking=True),
        }

    def _predicted(self, inputs: dict[str, Any]) -> torch.Tensor:
        with self._accelerator.autocast():
            predicted: torch.Tensor = self._prepared(inputs["noisy"], inputs["timesteps"], **inputs["unet"], return_dict=False)[0]
        return predicted

    def _loss_of(self, inputs: dict[str, Any]) -> torch.Tensor:
        weighed = (inputs["wanted"], inputs["timesteps"], inputs["weights"], inputs["masks"])
        return objective.loss(self._predicted(inputs), *weighed, self.job.config.objective, self._noise_scheduler)
