"""The recipe: train a LoRA, from the caches to the exported file. ``train`` is the loop, and the methods below it are one training step.

The step is plain, eager PyTorch, and complete as it is. What makes it faster or smaller is an acceleration
(``compute/acceleration.py``): it may change the frozen denoiser before adapters are put in, and it may wrap ``forward_backward``.
"""

from __future__ import annotations

import math
import threading
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ..adapters.ema import Ema
from ..adapters.norms import limit_norms, weight_norms
from ..compute import accelerations
from ..compute.acceleration import Context, EagerPass, ForwardBackward, Inputs
from ..compute.denoiser_setup import prepare_denoiser
from ..config.run_config import RunConfig
from ..core import seeding
from ..core.diagnosis import diagnose
from ..core.errors import Cancelled
from ..core.gpu_sync import StepLimiter
from ..core.messages import Message
from ..objective import denoising_loss
from ..runs import events
from ..runs.controls import Control
from ..runs.run_folder import RunFolder
from ..runs.run_times import start_day
from ..runs.states import state_folder
from .batch_loader import BatchLoader, StepBatch
from .caching.cache import RepairingCache
from .distributed import average_over_processes, make_accelerator
from .event_writer import EventLog
from .fill_caches import CacheFiller
from .micro_batch import MicroBatch
from .model import load_model
from .monitoring.outputs import Outputs
from .monitoring.step_log import StepLog, StepMetrics, divergence_error
from .monitoring.trackers import Trackers, open_trackers
from .monitoring.validation_images import ValidationImages
from .monitoring.validation_loss import HeldOutValidation
from .open_run import open_run
from .optimizers import current_learning_rate, learning_rate, make_optimizer, make_schedule
from .requests import Requests
from .saving.checkpointer import Checkpointer
from .saving.lora_exporter import Exporter
from .train_state import TrainState
from .trained_text_encoders import text_encoder_steps

if TYPE_CHECKING:
    import torch

_NORMS_EVERY = 10  # steps: measuring takes hundreds of small products, a hundredth of a step on a fast GPU


class TrainingRecipe:
    """Trains one run. The constructor opens what it needs, ``train`` does the rest. Raises UserError, and Cancelled after a stop."""

    def __init__(self, run: RunFolder, config: RunConfig, emit: EventLog, requests: Requests) -> None:
        self.run, self.emit, self.requests = run, emit, requests
        self.opened = open_run(run, config, emit)
        self.config, self.plan, self.hardware = self.opened.config, self.opened.plan, self.opened.hardware
        self.writes = self.hardware.processes.is_main  # the other processes write no files
        self.lock = threading.RLock()  # held while the state changes, and while it is saved
        self.checkpointer: Checkpointer | None = None  # before the models are loaded, there is no state worth saving

    def train(self) -> None:
        """Fill caches, load models, train with validation images and checkpoints, export."""
        import torch

        self.emit(events.Plan.of(self.plan))
        checkpointer = self.setup()
        state, plan = self.state, self.plan
        has_images = False
        if state.step % plan.steps_per_epoch == 0 or state.step == plan.steps:  # at the start, or stopped before an epoch was evaluated
            has_images = self.evaluate(-(-state.step // plan.steps_per_epoch))
        if has_images or checkpointer.is_due():
            checkpointer.save_missing_lora()
        self.emit(events.Phase("training", state.step, plan.steps))
        self.take_up_requests()
        with closing(self.batch_loader.steps(state.step, self.model.noise_process, self.model.tokenize)) as batches:
            self.step_log.start_clock()
            for batch in batches:
                metrics = self.compute_gradients(batch)
                self.update_weights(batch, metrics)
                self.step_log.report()
                self.take_up_requests()
                if checkpointer.is_due():
                    checkpointer.save_state()
                has_images = self.evaluate(batch.epoch + 1) if batch.ends_epoch or state.step == plan.steps else False
                if has_images or checkpointer.is_due():
                    checkpointer.save_lora()
                if self.requests.is_stop_due(batch.ends_epoch and state.step < plan.steps):
                    raise Cancelled
                self.step_log.start_clock()
        checkpointer.finish()
        if self.hardware.device.type == "cuda":
            torch.cuda.synchronize()  # a process that ends too early leaves the others waiting for its gradients

    # One training step

    def compute_gradients(self, batch: StepBatch) -> StepMetrics:
        """The gradients of a step: forward and backward passes over all micro-batches, averaged over the processes, clipped."""
        import torch

        loss = torch.zeros((), device=self.hardware.device)
        for index, micro_batch in enumerate(batch.micro_batches):
            self.seed_dropout(index)
            for part in micro_batch.split(self.config.training.micro_batch_size):
                loss += self.forward_backward(part)
        loss = average_over_processes(self.accelerator, loss, self.model.parameters)
        grad_norm = self.accelerator.clip_grad_norm_(self.model.parameters, self.config.optimizer.max_grad_norm or math.inf)
        return StepMetrics(loss, grad_norm.detach(), current_learning_rate(self.optimizer))

    def forward_backward_eagerly(self, batch: MicroBatch) -> torch.Tensor:
        """Add the gradients of one micro-batch to ``.grad``; its weighted loss. ``forward_backward`` is this, or what accelerations made
        of it."""
        loss = batch.weighted(self.compute_loss(self.to_device(batch)))
        self.accelerator.backward(loss)
        return loss.detach()

    def to_device(self, batch: MicroBatch) -> Inputs:
        """``batch`` on the device, with its prompts encoded."""
        return self.model.to_device(batch, train_text=self.state.step < text_encoder_steps(self.config, self.plan.steps))

    def compute_loss(self, inputs: Inputs) -> torch.Tensor:
        """Add noise, predict, compare with the target: the mean loss of a micro-batch."""
        process, timesteps = self.model.noise_process, inputs["timesteps"]
        noisy_latents = process.add_noise(inputs["latents"], inputs["input_noise"], timesteps)
        prediction = self.model.predict(noisy_latents, process.denoiser_timesteps(timesteps), inputs["conditioning"])
        target = process.target(inputs["latents"], inputs["noise"], timesteps)
        return denoising_loss.loss(prediction, target, timesteps, inputs["weights"], inputs["masks"], self.config.objective, process)

    def update_weights(self, batch: StepBatch, metrics: StepMetrics) -> None:
        """Optimiser, schedule, weight norms, moving average. A stop sees the state before all of them or after, never in between."""
        with self.lock:
            self.optimizer.step()
            self.lr_scheduler.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.state.step += 1
            norms = self.limit_or_measure_norms()
            if self.ema is not None:
                self.ema.update(self.state.step)
            self.gpu_queue.step()
            self.step_log.record(self.state.step, batch.epoch, batch.images, metrics, norms)

    def limit_or_measure_norms(self) -> torch.Tensor | None:
        """The weight norms of all modules after this step, (modules,); None in most steps, unless the norms are limited."""
        if self.config.network.max_norm:
            return limit_norms(self.model.pairs, self.config.network.max_norm)
        if self.state.step % _NORMS_EVERY == 0 or self.state.step in (1, self.plan.steps):
            return weight_norms(self.model.pairs)
        return None

    def seed_dropout(self, index: int) -> None:
        """Seed dropout by the place in the run, so that a resumed run drops the same."""
        import torch

        if self.config.network.dropout:
            rank = self.hardware.processes.rank
            place = (self.state.step, index, rank) if rank else (self.state.step, index)
            torch.manual_seed(seeding.derive_seed(self.config.training.seed, "dropout", *place) % 2**63)

    # Before and between the steps

    def setup(self) -> Checkpointer:
        """Everything before the first step."""
        self.accelerator = make_accelerator(self.hardware.device, self.hardware.precision)
        self.fill_caches()
        self.emit(events.Phase("loading"))
        self.load()
        return self.open_outputs()

    def fill_caches(self) -> None:
        """Encode images and prompts in the first process, while the others wait; make the loader of batches."""
        opened, base, hardware = self.opened, self.opened.base, self.hardware
        stop = self.requests.is_stopped
        filler = CacheFiller(self.config, self.plan, opened.datasets, opened.cache, base, hardware.device, self.emit, stop)
        if self.writes:
            filler.warn_of_prompts()
            filler.fill()
        self.accelerator.wait_for_everyone()
        self.filler = filler
        self.cache = RepairingCache(opened.cache, filler.fill)
        pin_memory = hardware.device.type == "cuda"
        training_set = opened.datasets.training
        self.batch_loader = BatchLoader(self.config, self.plan, training_set, self.cache, hardware.processes, pin_memory=pin_memory)

    def load(self) -> None:
        """Load the models with their adapters, make optimiser and schedule, and restore the saved state of a resumed run."""
        config, plan, start, base, hardware = self.config, self.plan, self.opened.start, self.opened.base, self.hardware
        context = Context(config, hardware.device, hardware.dtype, len(plan.buckets), plan.attention, self._warn)
        enabled = accelerations.enabled(config, plan)
        prepare = partial(prepare_denoiser, accelerations=enabled, context=context)
        starts_from_lora = bool(config.base.lora) and start.values is None
        text_settings = self.opened.cache.text
        self.model = load_model(config, base, hardware, text_settings, self.accelerator, prepare, starts_from_lora=starts_from_lora)
        lr = learning_rate(config.optimizer, base.family.learning_rate, config.network.rank)
        optimizer = make_optimizer(self.model.pairs, config.optimizer, lr)
        self.lr_scheduler = make_schedule(optimizer, config.optimizer, plan.steps)
        if hasattr(optimizer, "train"):
            optimizer.train()  # schedule-free
        self.optimizer = self.accelerator.prepare(optimizer)
        named = {name: parameter for pair in self.model.pairs for name, parameter in pair.tensors.items()}
        self.ema = Ema(named, config.training.ema_decay) if config.training.ema_decay else None
        self.state = TrainState(self.model.network, optimizer, self.lr_scheduler, self.ema, self.accelerator.scaler, self.lock)
        if start.values is not None:
            self.state.restore(start.step, start.values, state_folder(self.run.checkpoints, start.step))
        self.forward_backward: ForwardBackward = self.forward_backward_eagerly
        for acceleration in enabled:
            self.forward_backward = acceleration.wrap(self.forward_backward, self._eager_pass(), context)

    def _eager_pass(self) -> EagerPass:
        scaler = self.accelerator.scaler
        return EagerPass(
            denoiser=self.model.denoiser,
            network=self.model.network,
            parameters=self.model.parameters,
            to_device=self.to_device,
            loss=self.compute_loss,
            scale=(lambda loss: loss) if scaler is None else scaler.scale,
        )

    def open_outputs(self) -> Checkpointer:
        """Make what writes during the run: step log, validation loss and images, checkpoints."""
        config, plan, opened, base, hardware = self.config, self.plan, self.opened, self.opened.base, self.hardware
        trackers = open_trackers(self.run, config, opened.datasets.training, base.checkpoint.name, self._warn) if self.writes else []
        outputs = Outputs(self.run, self.emit, Trackers(trackers, self._warn))
        diverged = partial(divergence_error, config.optimizer.lr, hardware.precision, self.run.checkpoints, base.checkpoint.name)
        average = float(opened.start.values["average"]) if opened.start.values else 0.0
        self.opened = replace(opened, start=replace(opened.start, values=None))  # the models have them now: they may leave memory
        self.gpu_queue = StepLimiter(hardware.device)
        self.step_log = StepLog(plan, hardware.device, outputs, self.lock, diverged, average)
        shared = (config, plan, self.cache, self.model, self.state, hardware, outputs, self.requests.is_stopped)
        self.validation = HeldOutValidation(*shared, opened.datasets.held_out)
        self.validation_images = ValidationImages(*shared, opened.datasets.training.resolution, base)
        exporter = Exporter(
            config,
            opened.datasets.training,
            base.family,
            base.checkpoint,
            base.checkpoint.own_identity(opened.cache.folder),
            plan,
            start_day(self.run, record=self.writes),
            base.prediction,
            base.frozen_lora,
        )
        self.checkpointer = Checkpointer(config, plan, self.state, self.step_log, exporter, outputs, diverged, writes=self.writes)
        return self.checkpointer

    def evaluate(self, epoch: int) -> bool:
        """Validation loss and validation images of the weights after ``epoch``, where they are due. Epoch 0 is the base model.

        Whether there are images: what an artist sees can be used, so a LoRA is saved beside them, also where no state is due.
        """
        if not self.writes:
            return False
        self.validation.run(epoch)
        return self.validation_images.make(epoch)

    def take_up_requests(self) -> None:
        """Do what the parent asked for since the last step. While the run is paused, wait here: models and memory stay as they are."""
        for control in self.requests.next(self._report_pause):
            self.emit(events.Requested(control.action, self.state.step, list(control.prompts)))
            try:
                self.take_up(control)
            except Cancelled:
                raise
            except Exception as error:  # a request that fails does not end the run
                self._warn(Message("A request could not be met: ", diagnose(error, self.run.path).message))

    def take_up(self, control: Control) -> None:
        """Do what ``control`` asks for. A pause and a later stop are up to ``requests``."""
        if control.action == "save_now" and self.checkpointer is not None and self.state.step:
            self.checkpointer.save_state()
            self.checkpointer.save_lora()
        elif control.action == "edit_prompts":
            sample = self.config.sample.model_copy(update={"prompts": control.prompts})
            self.filler.fill_sample_prompts(sample)
            self.validation_images = replace(self.validation_images, config=self.config.model_copy(update={"sample": sample}))
        elif control.action == "sample_now":
            self.filler.fill_sample_prompts(self.validation_images.config.sample)
            self.validation_images.make_now(-(-self.state.step // self.plan.steps_per_epoch))
            if self.checkpointer is not None:
                self.checkpointer.save_missing_lora()
        elif control.action == "pause" and self.hardware.processes.world_size > 1:
            self._warn("A run on several GPUs cannot be paused.")
        elif control.action == "resume":
            self.emit(events.Phase("training", self.state.step, self.plan.steps))

    def _report_pause(self) -> None:
        self.emit(events.Phase(events.PAUSED, self.state.step, self.plan.steps))

    def _warn(self, message: str) -> None:
        self.emit(events.Warning_(message))
