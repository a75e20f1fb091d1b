"""Checkpoints: states to resume from, LoRA files at those steps and beside validation images, and the finished LoRA with its loss curve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...adapters import adapter
from ...config.run_config import RunConfig
from ...core.errors import UserError
from ...core.files.paths import safe_name
from ...core.messages import Message
from ...runs import events, states
from ...runs.event_log import loss_history, validation_history
from ...runs.loss_curve import draw_loss_curve
from ...runs.run_plan import RunPlan
from ...runs.run_times import training_seconds
from ...runs.saved_lora import has_record, is_undamaged, write_record
from ..monitoring.outputs import Outputs
from ..monitoring.step_log import StepLog
from ..monitoring.validation_images import thumbnail
from ..train_state import TrainState
from .lora_exporter import Exporter


class Checkpointer:
    """Saves states and LoRA files of one run. ``saved_step`` is that of the newest state on disk.

    ``diverged`` makes the error for weights that are not finite. Without ``writes`` (in all processes but the first) nothing is written.
    """

    def __init__(
        self,
        config: RunConfig,
        plan: RunPlan,
        state: TrainState,
        step_log: StepLog,
        exporter: Exporter,
        outputs: Outputs,
        diverged: Callable[[str], UserError],
        *,
        writes: bool,
    ) -> None:
        self._config, self._plan, self._state, self._step_log = config, plan, state, step_log
        self._exporter, self._outputs, self._diverged, self._writes = exporter, outputs, diverged, writes
        self.saved_step = state.step
        if writes:
            _ = exporter.base_legacy_hash  # read now, because later the checkpoint may be gone, and nothing else needs it then

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self._state.step

    def is_due(self) -> bool:
        """Whether a checkpoint is saved after the step just done."""
        training = self._config.training
        intervals = training.checkpoint_every, training.checkpoint_epochs * self._plan.steps_per_epoch
        return self.step == self._plan.steps or any(every and self.step % every == 0 for every in intervals)

    def save_state(self) -> None:
        """Write the state after the last step, and delete old ones beyond the number to keep."""
        if not self._writes:
            return
        with self._state.lock:
            self.save_now()
        states.delete_old(self._outputs.run.checkpoints, self._config.training.keep_checkpoints)

    def save_now(self) -> None:
        """Write the state after the last step. The caller holds the state's lock. Raises UserError when no run could resume from it."""
        self._step_log.flush()
        values = {**self._state.values(), "average": self._step_log.average}
        if not adapter.all_finite(values["lora"]):
            raise self._diverged(f"The weights are no longer finite after step {self.step}")
        run = self._outputs.run
        self.saved_step = states.save(run.checkpoints, self.step, values, run=run.identity).step

    def save_lora(self) -> None:
        """Write the LoRA of this step, so that the LoRA of a good epoch can be used at once; a state beside it is saved less often."""
        if not self._writes:
            return
        step, lora = self.step, self._lora_path()
        try:
            self._export(lora)
        except UserError as error:
            if error.kind != "lora":
                raise
            # the first steps of a warm-up learn nothing yet; only the finished file has to be good
            self._outputs.emit(events.Warning_(Message(f"No LoRA file was written at step {step}: ", error.message)))
            return
        with self._state.lock:
            write_record(lora)
        self._outputs.emit(events.Checkpoint(step, str(lora.parent), str(lora)))

    def save_missing_lora(self) -> None:
        """Write the LoRA of this step, unless it is there, undamaged and with its checksum. Step 0 has none."""
        lora = self._lora_path()
        if self.step and not (has_record(lora) and is_undamaged(lora)):
            self.save_lora()

    def finish(self) -> None:
        """Write the finished LoRA, the loss curve and the record that makes the run complete."""
        if not self._writes:
            return
        run, emit = self._outputs.run, self._outputs.emit
        emit(events.Phase("exporting"))
        self._export(run.lora)
        draw_loss_curve(
            loss_history(run.events),
            run.loss_curve,
            title=self._config.name,
            per_epoch=self._plan.steps_per_epoch,
            validation=validation_history(run.events),
        )
        self._outputs.trackers.close()
        seconds, steps, loss = training_seconds(run.events), self.step, self._step_log.average
        run.write_result(steps=steps, loss=loss, seconds=seconds)
        emit(events.Done(str(run.lora), str(run.loss_curve), steps, seconds, loss))

    def _lora_path(self) -> Path:
        name = f"{safe_name(self._config.name)}-{self.step:06d}.safetensors"
        return states.state_folder(self._outputs.run.checkpoints, self.step) / name

    def _export(self, path: Path) -> None:
        weights, image = self._state.weights(), thumbnail(self._outputs.run.samples)
        with self._state.lock:  # a stop that comes now finds the file whole
            self._exporter.write(path, weights, step=self.step, loss=self._step_log.average, thumbnail=image)
