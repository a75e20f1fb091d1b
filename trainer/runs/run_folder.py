"""The run folder: its identity, its files, and finding a finished run again.

<runs>/<name>-<identity>/
    config.json         the configuration that made it        events.jsonl   the event stream
    started.json        the day of its first start            child.log      what the child printed
    lineage.json        what it can be continued as
    samples/            validation images                     checkpoints/   states to resume from
    tensorboard/        scalars                               loss_curve.png
    <name>.safetensors  the LoRA                              result.json    written last: the run is complete
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..config.run_config import RunConfig
from ..core.files.paths import expand_home, safe_name
from ..core.files.reading import read_regular, sha256_file
from ..core.files.sealed_json import read_sealed, write_sealed
from .event_log import SampleImage, read_samples

_MAX_CONFIG = 1 << 24  # bytes
OLD_RESULT = ("lora_sha256", "steps", "loss", "seconds", "version")  # the fields of a result before it had a checksum


@dataclass(frozen=True)
class RunResult:
    """A complete run. ``lora`` is the published file if the run publishes, else the one in the run folder; ``reused``: it was found."""

    run_dir: Path
    lora: Path
    lora_sha256: str
    loss_curve: Path
    samples: tuple[SampleImage, ...]
    reused: bool
    loss: float
    steps: int
    seconds: float


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one run's folder."""

    path: Path
    name: str

    @property
    def identity(self) -> str:
        """The hash of everything that determines the result, with which the folder's name ends."""
        return self.path.name.rsplit("-", 1)[-1]

    @property
    def config(self) -> Path:
        """The configuration as JSON."""
        return self.path / "config.json"

    def read_config(self, limit: int = _MAX_CONFIG) -> dict[str, Any]:
        """The configuration as plain data, not validated; empty if it is missing, damaged, or longer than ``limit`` bytes."""
        try:
            data = json.loads(read_regular(self.config, limit))
        except (OSError, ValueError, RecursionError):
            return {}
        return data if isinstance(data, dict) else {}

    @property
    def accelerate_config(self) -> Path:
        """The configuration of accelerate's launcher."""
        return self.path / "accelerate.yaml"

    @property
    def events(self) -> Path:
        """The event log, to which each start of the run appends."""
        return self.path / "events.jsonl"

    @property
    def started(self) -> Path:
        """The day of the first start."""
        return self.path / "started.json"

    @property
    def log(self) -> Path:
        """The output of the child."""
        return self.path / "child.log"

    @property
    def lineage(self) -> Path:
        """The record by which runs that continue this one find it."""
        return self.path / "lineage.json"

    @property
    def lora(self) -> Path:
        """The finished LoRA."""
        return self.path / f"{safe_name(self.name)}.safetensors"

    @property
    def loss_curve(self) -> Path:
        """Image of the loss over the steps."""
        return self.path / "loss_curve.png"

    @property
    def checkpoints(self) -> Path:
        """Folder of the states to resume from."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        """Folder of the validation images."""
        return self.path / "samples"

    @property
    def parent_lock(self) -> Path:
        """Lock file of the process that starts and follows the training."""
        return self.path / ".lock"

    @property
    def child_lock(self) -> Path:
        """Lock file of the process that trains. It may outlive its parent to save its state."""
        return self.path / ".child.lock"

    @property
    def longest(self) -> Path:
        """The longest path that is written here: a LoRA beside a state."""
        return self.checkpoints / "step-000000" / f"{safe_name(self.name)}-000000.safetensors"

    @property
    def result(self) -> Path:
        """The record that makes a run complete; written last."""
        return self.path / "result.json"

    def write_result(self, *, steps: int, loss: float, seconds: float) -> None:
        """Mark the run complete, so that it is found instead of repeated."""
        data = {"lora_sha256": sha256_file(self.lora), "steps": steps, "loss": loss, "seconds": seconds, "version": __version__}
        write_sealed(self.result, data)

    def lora_digest(self) -> str:
        """The SHA-256 of the finished LoRA; empty if the run did not finish or its result is damaged."""
        try:
            return str(read_sealed(self.result, without=OLD_RESULT)["lora_sha256"])
        except (OSError, ValueError, KeyError):
            return ""

    def finished(self) -> RunResult | None:
        """The result of a complete and undamaged run, else None."""
        try:
            data = read_sealed(self.result, without=OLD_RESULT)
            if sha256_file(self.lora) != data["lora_sha256"]:
                return None
            return RunResult(
                run_dir=self.path,
                lora=self.lora,
                lora_sha256=data["lora_sha256"],
                loss_curve=self.loss_curve,
                samples=read_samples(self.events),
                reused=True,
                loss=float(data["loss"]),
                steps=int(data["steps"]),
                seconds=float(data["seconds"]),
            )
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None


def run_identity(config: RunConfig, dataset_hash: str, base_identity: str, lora_identity: str = "") -> str:
    """16 hex digits of a hash over everything that determines the result: configuration, dataset, base checkpoint, the LoRA that training
    starts from, if there is one, and the version of the trainer."""
    return _hash(config.identity(), dataset_hash, base_identity, lora_identity)


def lineage_identity(config: RunConfig, dataset_hash: str, base_identity: str, lora_identity: str = "") -> str:
    """The same without what can change while a run lasts: runs of one lineage can continue each other."""
    return _hash(config.lineage(), dataset_hash, base_identity, lora_identity)


def _hash(config: dict[str, Any], dataset_hash: str, base_identity: str, lora_identity: str) -> str:
    parts: dict[str, Any] = {
        "config": config,
        "dataset": dataset_hash,
        "base": base_identity,
        "version": __version__,
    }
    if lora_identity:
        parts["lora"] = lora_identity
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def locate_run_folder(config: RunConfig, identity: str) -> RunFolder:
    """The folder below ``output.runs`` of the run with this identity. Does not create it."""
    root = expand_home(config.output.runs).resolve()
    return RunFolder(root / f"{safe_name(config.name, limit=60)}-{identity}", config.name)


def cache_folder(config: RunConfig) -> Path:
    """Where latents, prompts and checkpoint digests are cached, shared by all runs below ``output.runs``."""
    return expand_home(config.output.runs).resolve() / "_cache"
