"""The training run from top to bottom, as the child process does it."""

from __future__ import annotations

import math
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from . import adapter, config, counters, devices, events, objective, resume, sampler
from .cache import Cache, fill_latents, fill_prompts
from .captions import all_captions, caption_at
from .child import Emitter, Silent, watch_parent
from .continuing import load_lora
from .curve import draw_loss_curve
from .dataset import Dataset, open_dataset
from .errors import Cancelled, UserError
from .export import Exporter, training_day
from .families import Checkpoint, family_of, open_checkpoint
from .files import atomic_path, safe_name
from .hints import explain
from .optimizers import learning_rate, make_optimizer, make_schedule
from .overrides import apply_override
from .plan import make_plan, require_memory
from .runs import RunFolder, cache_folder, loss_history, read_events
from .sampling import decode, sample_latents

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
DONE, FAILED, STOPPED = 0, 1, 3
_CACHE_REPAIRS = 16  # damaged cache files that one read puts up with
_FLUSH_SECONDS = 0.5  # losses stay on the device for this long at most: reading one waits for the GPU


def train_run(folder: Path, *, watch_stdin: bool) -> int:
    """Train the run in ``folder``; its exit status. Every outcome is the last event of the log: done, stopped or error."""
    loaded = config.load(folder / "config.json")
    run = RunFolder(folder, loaded.name)
    first = int(os.environ.get("RANK", "0")) == 0
    emit = Emitter(run.events) if first else Silent()
    stop = threading.Event()
    trainer: Trainer | None = None

    def on_stop() -> None:
        stop.set()
        # a step may take longer than anyone waits: save between steps from this thread, then leave
        if trainer is not None and first:
            trainer.stop_now()

    if watch_stdin:
        watch_parent(on_stop)
    try:
        emit(events.Phase("loading"))
        trainer = Trainer(run, loaded, emit, stop)
        trainer.train()
        return DONE
    except Cancelled:
        if trainer is not None:
            trainer.stop_now()
        emit(events.Stopped(0, ""))
        return STOPPED
    except Exception as error:  # every failure becomes an event with its cause and a hint
        failure = explain(error, folder)
        with suppress(OSError):  # the log is on the disk that may be full
            traceback.print_exc()
        emit(events.Error(failure.kind, failure.message, failure.hint))
        return FAILED


class Trainer:
    """One run: sets up in ``__init__``, then ``train`` reads like the recipe."""

    def __init__(self, run: RunFolder, config: config.RunConfig, emit: Emitter, stop: threading.Event) -> None:
        self.run, self.config, self.emit, self.stop = run, config, emit, stop
        self.device = devices.pick_device(config.training.device)
        self.precision = devices.pick_precision(config.training.precision, self.device)
        self.dtype = devices.torch_dtype(self.precision)
        self.dataset: Dataset = open_dataset(Path(config.dataset.path))
        self.checkpoint: Checkpoint = open_checkpoint(config.base.checkpoint)
        self.family = family_of(self.checkpoint)
        self.prediction = objective.chosen_prediction(self.family.prediction(self.checkpoint), config.objective)
        folder = cache_folder(config)
        self.cache = Cache(folder, self.checkpoint.identity(folder))
        self._resumed = resume.newest(run.checkpoints)
        plan = make_plan(config, self.dataset, self.family, self.checkpoint, self.device, self.precision)
        require_memory(plan, devices.total_memory_gb(self.device), self._memory_with)
        self.plan = replace(plan, start_step=self._resumed[0].step if self._resumed[0] else 0)
        self.exporter = Exporter(
            config, self.dataset, self.family, self.checkpoint, self.cache.identity, self.plan, training_day(), self.prediction
        )
        self.step = 0
        self._between_steps = threading.Lock()  # held while weights and optimiser change
        self._ready = False  # whether there is a state worth saving
        self._pending: list[tuple[int, torch.Tensor, torch.Tensor, float, float]] = []
        self._average = 0.0
        self._set_aside: dict[str, Any] | None = None  # the state while a schedule-free optimiser shows its average
        self._saved_step = 0  # of the newest state on disk
        self._flushed_at = self._clock = time.monotonic()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("Training on several processes is not supported yet.", "Launch one process.", kind="device")

    # the recipe

    def train(self) -> None:
        """Cache, load, train with samples and checkpoints, export."""
        import torch

        self.emit(self.plan)
        self._fill_caches()
        unet = self._load_unet()
        self._restore()
        per_epoch = self.plan.steps_per_epoch
        if self.step % per_epoch == 0 or self.step == self.plan.steps:  # at the start, or stopped while the epoch's images were made
            self._sample(unet, -(-self.step // per_epoch))
        if self.step and self._is_due() and not self._checkpoint_lora().is_file():  # stopped between a state and its LoRA file
            self._save_lora()
        self.emit(events.Phase("training", self.step, self.plan.steps))
        self._clock = time.monotonic()
        with ThreadPoolExecutor(1, "batches") as pool:
            for epoch, micro_batches, ends_epoch in self._prefetched(pool):
                self._optimise(unet, epoch, micro_batches)
                self._tell_steps()
                if self._is_due():
                    self._save_state()
                if ends_epoch or self.step == self.plan.steps:
                    self._sample(unet, epoch + 1)
                if self._is_due():
                    self._save_lora()
                if self.stop.is_set():
                    raise Cancelled
                self._clock = time.monotonic()
        self._finish()
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def stop_now(self) -> None:
        """Save the last complete step and end the process: callable from any thread at any moment."""
        status = STOPPED
        with self._between_steps:
            try:
                if self._ready and self.step > self._saved_step:
                    self._flush()
                    self._saved_step = resume.save(self.run.checkpoints, self.step, self._state()).step
                newest = self.run.checkpoints / f"step-{self._saved_step:06d}"
                self.emit(events.Stopped(self._saved_step, str(newest) if self._saved_step else ""))
            except Exception as error:  # nothing may keep a child alive that was told to stop
                failure = explain(error, self.run.path)
                self.emit(events.Error(failure.kind, failure.message, failure.hint))
                status = FAILED
            finally:
                os._exit(status)

    def _memory_with(self, changes: Sequence[str]) -> float:
        """The estimate in GB with some keys of the configuration changed."""
        data = self.config.model_dump(mode="json")
        for change in changes:
            apply_override(data, change, example="training.batch_size=1")
        changed = config.parse(data)
        precision = devices.pick_precision(changed.training.precision, self.device)
        return make_plan(changed, self.dataset, self.family, self.checkpoint, self.device, precision).memory_gb

    # preparing

    def _fill_caches(self) -> None:
        prompts = list(self.config.sample.prompts) if self.config.sample.every_epochs else []
        prompts += [self.config.sample.negative] if prompts else []
        seed, hints = self.config.training.seed, self.dataset.training
        for epoch in range(self.plan.epochs):
            for slot in (slot for batch in self._batches(epoch) for slot in batch):
                prompts.append(caption_at(self.dataset.items[slot.item], hints, seed=seed, epoch=epoch, position=slot.position))
            if not (hints.shuffle_caption or hints.caption_dropout or hints.tag_dropout):
                break  # captions are the same in every epoch

        def progress(phase: str) -> Any:
            return lambda done, total: self.emit(events.Phase(phase, done, total))

        common = (self.family, self.checkpoint, self.device)
        fill_latents(self.cache, self.dataset, *common, progress("caching latents"), self.stop.is_set)
        fill_prompts(self.cache, all_captions(prompts), *common, progress("caching prompts"), self.stop.is_set)
        if self.device.type == "cuda":
            import torch

            torch.cuda.empty_cache()

    def _load_unet(self) -> Any:
        from accelerate import Accelerator

        self.emit(events.Phase("loading"))
        training, optimizer = self.config.training, self.config.optimizer
        self.accelerator = Accelerator(
            mixed_precision="no" if self.precision == "fp32" else self.precision,
            cpu=self.device.type == "cpu",
        )
        unet = self.family.load_unet(self.checkpoint, self.dtype)
        network = self.config.network
        modules = self.family.lora_targets(unet, network.targets)
        adapter.adapt(unet, modules, network, counters.derive_seed(training.seed, "weights") % 2**32)
        if self.config.base.lora and self._resumed[0] is None:
            load_lora(unet, Path(self.config.base.lora), network)
        if training.gradient_checkpointing:
            unet.enable_gradient_checkpointing()  # type: ignore[operator]
        self._unet = unet.to(self.device).train()
        self._parameters = adapter.parameters(self._unet)
        lr = learning_rate(optimizer, self.family.name, network.rank)
        self._optimizer = make_optimizer(list(adapter.pairs(self._unet)), optimizer, lr, self.device)
        self._schedule = make_schedule(self._optimizer, optimizer, self.plan.steps)
        if hasattr(self._optimizer, "train"):
            self._optimizer.train()  # schedule-free
        self._noise_scheduler = self.family.noise_scheduler(self.prediction)
        prepared, self._optimizer_wrapped = self.accelerator.prepare(self._unet, self._optimizer)
        self._ready = True
        return prepared

    def _restore(self) -> None:
        saved, values = self._resumed
        self._resumed = (None, None)
        if saved is None or values is None:
            return
        adapter.load_state(self._unet, values["lora"])
        self._optimizer.load_state_dict(values["optimizer"])
        self._schedule.load_state_dict(values["schedule"])
        if self.accelerator.scaler is not None and values.get("scaler"):
            self.accelerator.scaler.load_state_dict(values["scaler"])
        self._average = float(values["average"])
        self.step = self._saved_step = saved.step

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Within it the weights are those to use: a schedule-free optimiser's average, for all others what they are.

        Afterwards the weights are back to the bit, and a stop in between saves them as they were.
        """
        if not hasattr(self._optimizer, "eval"):
            yield
            return
        with self._between_steps:
            self._set_aside = self._state()
            self._optimizer.eval()
        try:
            yield
        finally:
            with self._between_steps:
                self._optimizer.train()
                adapter.load_state(self._unet, self._set_aside["lora"])
                self._set_aside = None

    def _state(self) -> dict[str, Any]:
        if self._set_aside is not None:
            return self._set_aside
        scaler = self.accelerator.scaler
        return {
            "lora": adapter.state(self._unet),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
            "average": self._average,
        }

    # training

    def _batches(self, epoch: int) -> list[list[sampler.Slot]]:
        sizes = [(item.width, item.height) for item in self.dataset.items]
        repeats = [item.repeats for item in self.dataset.items]
        training = self.config.training
        return sampler.epoch_batches(sizes, repeats, training.batch_size, seed=training.seed, epoch=epoch)

    def _plan_steps(self) -> Iterator[tuple[int, list[list[sampler.Slot]], bool]]:
        """(epoch, micro-batches, whether the epoch ends) for every step from the current one on."""
        first, offset = divmod(self.step, self.plan.steps_per_epoch)
        done = self.step
        for epoch in range(first, self.plan.epochs):
            groups = sampler.group(self._batches(epoch), self.config.training.gradient_accumulation)
            for index in range(offset, len(groups)):
                if done == self.plan.steps:
                    return
                done += 1
                yield epoch, groups[index], index == len(groups) - 1
            offset = 0

    def _prefetched(self, pool: ThreadPoolExecutor) -> Iterator[tuple[int, list[objective.MicroBatch], bool]]:
        """The steps' batches, the next one read from the cache while the current one trains."""
        timesteps = int(self._noise_scheduler.config.num_train_timesteps)

        def load(epoch: int, group: list[list[sampler.Slot]]) -> list[objective.MicroBatch]:
            seed = self.config.training.seed
            settings = self.config.objective

            def build(slots: list[sampler.Slot]) -> objective.MicroBatch:
                return objective.build(slots, self.dataset, self.cache, settings, seed=seed, epoch=epoch, timesteps=timesteps)

            return [self._repairing(partial(build, slots)) for slots in group]

        waiting = None
        for epoch, group, ends in self._plan_steps():
            future = pool.submit(load, epoch, group)
            if waiting is not None:
                yield waiting[0], waiting[1].result(), waiting[2]
            waiting = (epoch, future, ends)
        if waiting is not None:
            yield waiting[0], waiting[1].result(), waiting[2]

    def _repairing(self, read: Callable[[], T]) -> T:
        """What ``read`` gives; a cache file that it finds damaged is made anew."""
        for _ in range(_CACHE_REPAIRS):
            try:
                return read()
            except UserError as error:
                if error.kind != "cache":
                    raise
                self._fill_caches()
        return read()

    def _optimise(self, unet: Any, epoch: int, micro_batches: list[objective.MicroBatch]) -> None:
        """One optimiser step. Its loss and the gradient norm before clipping stay on the device until they are told."""
        import torch

        total = torch.zeros((), device=self.device)
        for index, batch in enumerate(micro_batches):
            if self.config.network.dropout:  # drawn from where in the run this is, so that a continued run draws the same
                torch.manual_seed(counters.derive_seed(self.config.training.seed, "dropout", self.step, index) % 2**63)
            loss = self._loss(unet, batch) / len(micro_batches)
            with self.accelerator.no_sync(unet) if index < len(micro_batches) - 1 else nullcontext():
                self.accelerator.backward(loss)
            total += loss.detach()
        limit = self.config.optimizer.max_grad_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(self._parameters, limit)
        assert norm is not None
        images = sum(batch.size for batch in micro_batches)
        group = self._optimizer.param_groups[0]  # as this step uses it: the schedule moves on below
        lr = float(group["lr"]) * float(group.get("d", 1.0))  # Prodigy's own estimate multiplies the rate
        with self._between_steps:
            self._optimizer_wrapped.step()
            self._schedule.step()
            self._optimizer_wrapped.zero_grad(set_to_none=True)
            self.step += 1
            speed = images / max(time.monotonic() - self._clock, 1e-9)
            self._pending.append((epoch, total, norm.detach(), lr, speed))

    def _loss(self, unet: Any, batch: objective.MicroBatch) -> torch.Tensor:
        latents, noise, mixed = (tensor.to(self.device, non_blocking=True) for tensor in (batch.latents, batch.noise, batch.mixed))
        timesteps = batch.timesteps.to(self.device, non_blocking=True)
        noisy = self._noise_scheduler.add_noise(latents, mixed, timesteps)
        inputs = self.family.unet_inputs(batch.conditions, batch.framings, self.device, self.dtype)
        with self.accelerator.autocast():
            predicted = unet(noisy.to(self.dtype), timesteps, **inputs, return_dict=False)[0]
        wanted = objective.target(self._noise_scheduler, latents, noise, timesteps)
        masks = None if batch.masks is None else batch.masks.to(self.device)
        weights = batch.weights.to(self.device)
        return objective.loss(predicted, wanted, timesteps, weights, masks, self.config.objective, self._noise_scheduler)

    # telling

    def _tell_steps(self) -> None:
        now = time.monotonic()
        if now - self._flushed_at > _FLUSH_SECONDS or self.device.type == "cpu":
            with self._between_steps:
                self._flush()
            self._flushed_at = now

    def _flush(self) -> None:
        """Emit the steps recorded since the last time. Raises UserError at the first loss that is not finite."""
        pending, self._pending = self._pending, []
        memory = devices.peak_memory_gb(self.device)
        writer = self._tensorboard()
        first = self.step - len(pending) + 1
        for step, (epoch, loss, norm, lr, rate) in enumerate(pending, start=first):
            value, size = float(loss), float(norm)
            if not math.isfinite(value):
                raise UserError(
                    f"The loss became {value} at step {step}; training cannot recover from that.",
                    "Lower the learning rate (half, then half again), or train in bf16 or fp32 instead of fp16. "
                    "The last checkpoint before it is kept.",
                    kind="nan",
                )
            self._average = value if step == 1 else 0.95 * self._average + 0.05 * value
            eta = (self.plan.steps - step) * self._images_per_step() / max(rate, 1e-9)
            self.emit(events.Step(step, self.plan.steps, epoch + 1, value, self._average, lr, size, rate, eta, memory))
            if writer is not None:
                for name, number in (("loss", value), ("loss/average", self._average), ("lr", lr), ("grad_norm", size)):
                    writer.add_scalar(name, number, step)

    def _images_per_step(self) -> float:
        return sum(self.plan.buckets.values()) / self.plan.steps_per_epoch

    def _tensorboard(self) -> Any:
        if not hasattr(self, "_writer"):
            self._writer: Any = None
            if self.config.output.tensorboard and not isinstance(self.emit, Silent):
                try:
                    from torch.utils.tensorboard import SummaryWriter

                    self._writer = SummaryWriter(str(self.run.path / "tensorboard"))
                except ImportError:
                    self.emit(events.Warning_("TensorBoard is not installed; no TensorBoard log is written (pip install tensorboard)."))
        return self._writer

    def _sample(self, unet: Any, epoch: int) -> None:
        """Validation images with fixed seeds, the same noise after every epoch; epoch 0 is the base before training."""
        sample = self.config.sample
        if not (sample.prompts and sample.every_epochs) or isinstance(self.emit, Silent):
            return
        if epoch % sample.every_epochs and self.step != self.plan.steps:
            return
        if self._sample_path(epoch, len(sample.prompts) - 1).is_file():
            return
        import torch

        with self._averaged():
            latents = self._sample_latents(self.accelerator.unwrap_model(unet))
        vae: Any = self.family.load_vae(self.checkpoint, torch.float32).to(self.device)
        for index, latent in enumerate(latents):
            path = self._sample_path(epoch, index)
            with atomic_path(path) as temporary:
                decode(vae, latent).save(temporary, format="PNG")
            self.emit(events.Sample(str(path), sample.prompts[index], epoch, self.step, index))
        del vae
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _sample_latents(self, model: Any) -> list[torch.Tensor]:
        sample = self.config.sample
        width, height = (side // 8 * 8 for side in (sample.width or self.dataset.resolution, sample.height or self.dataset.resolution))
        negative = self._repairing(partial(self.cache.prompt, sample.negative))
        model.eval()
        latents = []
        for index, prompt in enumerate(sample.prompts):
            self.emit(events.Phase("sampling", index, len(sample.prompts)))
            result = sample_latents(
                model,
                self.family,
                self._repairing(partial(self.cache.prompt, prompt)),
                negative,
                width=width,
                height=height,
                steps=sample.steps,
                guidance=sample.guidance,
                generator=counters.generator(sample.seed, "sample", index),
                prediction=self.prediction,
                device=self.device,
                dtype=self.dtype,
                stop=self.stop.is_set,
            )
            if result is None:
                raise Cancelled
            latents.append(result.cpu())
        model.train()
        return latents

    def _sample_path(self, epoch: int, index: int) -> Path:
        return self.run.samples / f"epoch-{epoch:03d}-{index:02d}.png"

    # keeping

    def _is_due(self) -> bool:
        every = self.config.training.checkpoint_every
        return self.step == self.plan.steps or bool(every and self.step % every == 0)

    def _checkpoint_lora(self) -> Path:
        return self.run.checkpoints / f"step-{self.step:06d}" / f"{safe_name(self.config.name)}-{self.step:06d}.safetensors"

    def _save_state(self) -> None:
        if isinstance(self.emit, Silent):
            return
        with self._between_steps:
            self._flush()
            self._saved_step = resume.save(self.run.checkpoints, self.step, self._state()).step
        resume.prune(self.run.checkpoints, self.config.training.keep_checkpoints)

    def _save_lora(self) -> None:
        """A LoRA file beside the state: an epoch that one likes can be used at once."""
        if isinstance(self.emit, Silent):
            return
        lora = self._checkpoint_lora()
        try:
            self._export(lora)
        except UserError as error:
            if error.kind != "lora":
                raise
            # the first steps of a warm-up learn nothing yet; only the finished file has to be good
            self.emit(events.Warning_(f"No LoRA file was written at step {self.step}: {error.message}"))
            return
        self.emit(events.Checkpoint(self.step, str(lora.parent), str(lora)))

    def _export(self, path: Path) -> None:
        with self._averaged():
            weights = adapter.state(self._unet)
        self.exporter.write(path, weights, step=self.step, loss=self._average, thumbnail=self._thumbnail())

    def _finish(self) -> None:
        if isinstance(self.emit, Silent):
            return
        self.emit(events.Phase("exporting"))
        self._export(self.run.lora)
        history = loss_history(self.run.events)
        draw_loss_curve(history, self.run.loss_curve, title=self.config.name, per_epoch=self.plan.steps_per_epoch)
        if self._tensorboard() is not None:
            self._tensorboard().close()
        seconds = _training_seconds(self.run.events)
        self.run.write_result(steps=self.step, loss=self._average, seconds=seconds)
        self.emit(events.Done(str(self.run.lora), str(self.run.loss_curve), self.step, seconds, self._average))

    def _thumbnail(self) -> Any:
        from PIL import Image

        newest = sorted(self.run.samples.glob("epoch-*-00.png"))
        if not newest:
            return None
        with Image.open(newest[-1]) as image:
            return image.convert("RGB")


def _training_seconds(log_path: Path) -> float:
    """Seconds that all starts of a run took together, from the times in its event log."""
    log = read_events(log_path)
    # a start begins with the event before its plan: the time since the last start ended is nobody's
    starts = {index - 1 for index, event in enumerate(log) if isinstance(event, events.Plan)}
    pairs = enumerate(pairwise(log), start=1)
    # a clock that was set back makes a step of time negative
    return round(sum(max(0.0, later.time - earlier.time) for index, (earlier, later) in pairs if index not in starts), 3)
