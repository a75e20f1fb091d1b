"""What a run keeps: states to resume from, a LoRA file beside each, and the finished LoRA with its loss curve."""

from __future__ import annotations

from pathlib import Path

from ..adapters import adapter
from ..core.errors import UserError
from ..core.files.paths import safe_name
from ..runs import events, states
from ..runs.loss_curve import draw_loss_curve
from ..runs.run_folder import loss_history, validation_history
from ..runs.run_times import start_day, training_seconds
from ..runs.saved_lora import has_record, is_undamaged, write_record
from .export import Exporter
from .job import Job
from .learner import Learner
from .monitoring.preview_images import thumbnail
from .monitoring.step_log import Teller, not_finite


class Keeper:
    """Writes states and LoRA files of one run. ``saved_step`` is that of the newest state on disk."""

    def __init__(self, job: Job, learner: Learner, teller: Teller) -> None:
        self.job, self._learner, self._teller = job, learner, teller
        self.saved_step = learner.step
        self._exporter = Exporter(
            job.config,
            job.dataset,
            job.family,
            job.checkpoint,
            job.checkpoint.own_identity(job.cache.folder),
            job.plan,
            start_day(job.run, record=job.writes),
            job.prediction,
            job.frozen,
        )
        if job.writes:
            _ = self._exporter.base_legacy_hash  # later the checkpoint may be gone, and it is needed for nothing else

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self._learner.step

    def is_due(self) -> bool:
        """Whether the step just done is one to keep."""
        step, every = self.step, self.job.config.training.checkpoint_every
        return step == self.job.plan.steps or bool(every and step % every == 0)

    def save_state(self) -> None:
        """Write the state after the last step, and delete old ones beyond the number to keep."""
        if not self.job.writes:
            return
        with self.job.between_steps:
            self.save_now()
        states.delete_old(self.job.run.checkpoints, self.job.config.training.keep_checkpoints)

    def save_now(self) -> None:
        """Write the state after the last step, unless no run could go on from it (UserError). The caller holds ``between_steps``."""
        self._teller.flush()
        values = {**self._learner.state(), "average": self._teller.average}
        if not adapter.all_finite(values["lora"]):
            raise not_finite(self.job, f"The weights are no longer finite after step {self.step}")
        self.saved_step = states.save(self.job.run.checkpoints, self.step, values, run=self.job.run.identity).step

    def save_lora(self) -> None:
        """A LoRA file beside the state: an epoch that one likes can be used at once."""
        if not self.job.writes:
            return
        step, lora = self.step, self._checkpoint_lora()
        try:
            self._export(lora)
        except UserError as error:
            if error.kind != "lora":
                raise
            # the first steps of a warm-up learn nothing yet; only the finished file has to be good
            self.job.emit(events.Warning_(f"No LoRA file was written at step {step}: {error.message}"))
            return
        with self.job.between_steps:
            write_record(lora)
        self.job.emit(events.Checkpoint(step, str(lora.parent), str(lora)))

    def save_missing_lora(self) -> None:
        """Write the LoRA file of the state that a run resumes from, if the run was stopped before its checksum or the file is damaged."""
        lora = self._checkpoint_lora()
        if self.step and self.is_due() and not (has_record(lora) and is_undamaged(lora)):
            self.save_lora()

    def finish(self) -> None:
        """Write the finished LoRA, the loss curve and the record that makes the run complete."""
        job = self.job
        if not job.writes:
            return
        job.emit(events.Phase("exporting"))
        self._export(job.run.lora)
        history = loss_history(job.run.events)
        draw_loss_curve(
            history,
            job.run.loss_curve,
            title=job.config.name,
            per_epoch=job.plan.steps_per_epoch,
            validation=validation_history(job.run.events),
        )
        self._teller.trackers.close()
        seconds, steps, loss = training_seconds(job.run.events), self.step, self._teller.average
        job.run.write_result(steps=steps, loss=loss, seconds=seconds)
        job.emit(events.Done(str(job.run.lora), str(job.run.loss_curve), steps, seconds, loss))

    def _checkpoint_lora(self) -> Path:
        name = f"{safe_name(self.job.config.name)}-{self.step:06d}.safetensors"
        return states.state_folder(self.job.run.checkpoints, self.step) / name

    def _export(self, path: Path) -> None:
        weights, image = self._learner.weights(), thumbnail(self.job)
        with self.job.between_steps:  # a stop that comes now finds the file whole
            self._exporter.write(path, weights, step=self.step, loss=self._teller.average, thumbnail=image)
