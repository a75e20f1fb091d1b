"""Run folders with the files that a training writes, made in a moment: small states and LoRAs, grey images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from trainer.config.run_config import parse
from trainer.core.files.reading import sha256_file
from trainer.core.files.sealed_json import write_sealed
from trainer.runs import events
from trainer.runs.lineage import write_lineage
from trainer.runs.run_folder import RunFolder
from trainer.runs.saved_lora import write_record
from trainer.runs.states import state_folder

IDENTITY = "0123456789abcdef"
PROMPT = "a girl with blue hair"


def make_run(
    runs: Path,
    name: str,
    *,
    steps: int = 8,
    planned: int = 8,
    per_epoch: int = 4,
    states: tuple[int, ...] = (4,),
    start: float = 1_750_000_000.0,
    ending: str = "done",
    falls_by: float = 0.05,
    **settings: Any,
) -> RunFolder:
    """A run of ``steps`` of the ``planned`` ones that started at ``start``, with ``states`` and two validation images per epoch.

    ``ending`` is the name of the last event: done, stopped, error, or step for a run that was killed. The loss of step n is
    ``1 - n * falls_by``. ``settings`` are sections of the configuration.
    """
    run = RunFolder(runs / f"{name}-{IDENTITY}", name)
    for folder in (run.checkpoints, run.samples):
        folder.mkdir(parents=True)
    given = {"base": {"checkpoint": "/models/checkpoints/anime.safetensors"}, "dataset": {"path": "/datasets/girls"}} | settings
    output = {"runs": str(runs)}
    run.config.write_text(parse({"name": name, "output": output, **given}).to_json(), encoding="utf-8")
    write_lineage(run, name, steps=planned, steps_per_epoch=per_epoch)
    log = _training(run, steps, planned, per_epoch, start, falls_by)
    for step in states:
        log.append(_saved(run, step, start))
    run.lora.write_bytes(b"")
    if ending == "done":
        _lora(run.lora)
        loss = 1 - steps * falls_by
        log.append(events.Done(str(run.lora), str(run.loss_curve), steps, 60.0, loss, time=start + 90))
        write_sealed(run.result, {"lora_sha256": sha256_file(run.lora), "steps": steps, "loss": loss, "seconds": 60.0, "version": "0.1.0"})
    else:
        run.lora.unlink()
    if ending == "stopped":
        log.append(events.Stopped(steps, str(run.checkpoints), time=start + 90))
    if ending == "error":
        log.append(events.Error("memory", "The memory is full.", "", time=start + 90))
    run.events.write_text("".join(f"{events.encode_event(event)}\n" for event in log), encoding="utf-8")
    return run


def config_of(run: RunFolder) -> dict[str, Any]:
    """The configuration of a run as plain data."""
    return dict(json.loads(run.config.read_text(encoding="utf-8")))


def _training(run: RunFolder, steps: int, planned: int, per_epoch: int, start: float, falls_by: float) -> list[events.Event]:
    log: list[events.Event] = [events.Phase("loading", time=start)]
    for step in range(steps + 1):
        if step:
            loss = 1 - step * falls_by
            log.append(
                events.Step(
                    step=step,
                    steps=planned,
                    epoch=(step - 1) // per_epoch + 1,
                    loss=loss,
                    loss_average=loss,
                    lr=1e-4,
                    grad_norm=1.0,
                    images_per_second=2.0,
                    eta=3.0,
                    memory_gb=1.0,
                    time=start + step,
                )
            )
        if step % per_epoch == 0:
            epoch = step // per_epoch
            for index in range(2):
                path = run.samples / f"epoch-{epoch:03d}-{index:02d}.png"
                shade = np.full((64, 64, 3), 40 + 40 * (epoch % 5) + 20 * index, dtype=np.uint8)
                Image.fromarray(shade).save(path)
                log.append(events.Sample(str(path), f"{PROMPT} {index}", epoch, step, index, time=start + step))
    return log


def _saved(run: RunFolder, step: int, start: float) -> events.Event:
    folder = state_folder(run.checkpoints, step)
    folder.mkdir()
    (folder / "state.pt").write_bytes(b"x" * 1000)
    write_sealed(folder / "state.json", {"step": step, "run": run.identity, "sha256": sha256_file(folder / "state.pt")})
    lora = folder / f"{run.name}-{step:06d}.safetensors"
    _lora(lora)
    write_record(lora)
    return events.Checkpoint(step, str(folder), str(lora), time=start + step)


def _lora(path: Path) -> None:
    save_file({"weight": np.ones(4, dtype=np.float16)}, path)
