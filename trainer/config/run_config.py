"""The run configuration: one typed, validated model that describes a training run completely.

The node builds it from its widgets, the command line reads it from a TOML file, and the run folder keeps a copy.
pydantic validates (ComfyUI already depends on it); this module adds errors that name the nearest valid key.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator

from ..core.errors import UserError
from ..core.files.paths import expand_home
from ..core.files.text_file import read_text
from ..core.messages import Action, Message, Setting, join_messages
from .overrides import apply_override
from .presets import expanded
from .sections.base import BaseModelSection
from .sections.dataset import DatasetSection
from .sections.network import NetworkSection
from .sections.objective import ObjectiveSection
from .sections.optimizer import LENGTH_DEPENDENT, OptimizerSection
from .sections.output import OutputSection
from .sections.sample import SampleSection
from .sections.section import Section
from .sections.training import TrainingSection
from .sections.validation import ValidationSection
from .setting import setting, settings_of
from .validation_errors import describe_problems

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_SEE_DOCS = Message("Every setting is described in ", Action.READ_ABOUT_SETTINGS, ".")
_BASE_PATHS = ("checkpoint", "lora", "vae", "text_encoder")
_PATHS = (*(("base", name) for name in _BASE_PATHS), ("dataset", "path"), ("output", "runs"), ("output", "publish"))
# what a memory preset fills (see memory_presets.py): only keys that were left unset
LATER_SETTINGS = (  # what can change while a run lasts without changing a weight that was trained before; and all of ``sample``
    "name",
    "training.epochs",
    "training.max_steps",
    "training.checkpoint_every",
    "training.checkpoint_epochs",
    "training.keep_checkpoints",
    "validation.every_epochs",
    "validation.noise_levels",
)
PRESET_KEYS = (
    "training.gradient_checkpointing",
    "training.micro_batch_size",
    "training.base_precision",
    "training.swap_blocks",
    "optimizer.name",
)


class RunConfig(Section):
    """A whole training run."""

    name: str = setting("my_lora", "Name of the LoRA file.", why="Just a name.", min_length=1, max_length=200)
    base: BaseModelSection
    dataset: DatasetSection
    network: NetworkSection = NetworkSection()
    optimizer: OptimizerSection = OptimizerSection()
    objective: ObjectiveSection = ObjectiveSection()
    training: TrainingSection = TrainingSection()
    sample: SampleSection = SampleSection()
    validation: ValidationSection = ValidationSection()
    output: OutputSection = OutputSection()

    @model_validator(mode="after")
    def _name_is_text(self) -> RunConfig:
        if not self.name.strip():
            raise ValueError("name is blank")
        return self

    @model_validator(mode="after")
    def _something_is_trained(self) -> RunConfig:
        if not (self.network.unet or self.trains_text):
            unet, text = Setting("network.unet"), Setting("network.text_encoder")
            raise ValueError(Message(unet, " and ", text, " are both off: nothing would be trained"))
        return self

    @model_validator(mode="after")
    def _something_is_trained_to_the_end(self) -> RunConfig:
        if not self.network.unet and self.training.text_encoder_share < 1:
            share, unet = Setting("training.text_encoder_share"), Setting("network.unet")
            raise ValueError(Message(share, " leaves nothing to train after it, as ", unet, " is off: set it to 1"))
        return self

    @model_validator(mode="after")
    def _one_average_and_no_hidden_weights(self) -> RunConfig:
        if self.optimizer.name == "schedule-free" and self.training.ema_decay:
            raise ValueError(Message("schedule-free averages the weights itself: leave ", Setting("training.ema_decay"), " at 0"))
        if self.optimizer.name == "schedule-free" and self.network.max_norm:
            raise ValueError(
                Message("schedule-free keeps weights of its own that ", Setting("network.max_norm"), " cannot reach: use another optimizer")
            )
        return self

    @model_validator(mode="after")
    def _swapped_blocks_keep_their_form(self) -> RunConfig:
        if self.training.swap_blocks and not self.can_swap_blocks:
            others = (Setting("network.dora", True), Setting("training.compile", True), Setting("training.cuda_graphs", "on"))
            swap_blocks = Setting("training.swap_blocks")
            raise ValueError(Message(swap_blocks, " cannot be used with ", join_messages(" or ", others), ": set it to 0"))
        return self

    @property
    def can_swap_blocks(self) -> bool:
        """Whether blocks can be away from the GPU: DoRA reads all weights at the start, compiled and recorded passes expect them there."""
        return not (self.network.dora or self.training.compile or self.training.cuda_graphs == "on")

    def identity(self) -> dict[str, Any]:
        """The part that determines the result, as plain JSON data: everything but paths, output places and who shares the work."""
        # which datasets, and how often each, is in the datasets' common hash; a memory preset is what it fills in
        same_result = {"memory", "processes", "swap_blocks"}
        data = self.model_dump(mode="json", exclude={"output": True, "base": True, "dataset": True, "training": same_result})
        if not self.dataset.balance_regularisation:
            data["dataset"] = {"balance_regularisation": False}
        return dict(data)

    def lineage(self) -> dict[str, Any]:
        """The part of ``identity`` that determines the weights after a step, if the schedule does not depend on the run's length."""
        data = self.identity()
        del data["sample"]
        for key in LATER_SETTINGS:
            section, _, name = key.rpartition(".")
            del (data[section] if section else data)[name]
        return data

    def trains(self, component: str) -> bool:
        """Whether a model gets a LoRA. ``component`` is its name in LoRA files: ``unet`` (the denoiser), ``te1``, ``te2``, ``adapter``."""
        if component == "unet":
            return self.network.unet
        return self.optimizer.text_adapter_lr > 0 if component == "adapter" else self.network.text_encoder

    @property
    def trains_text(self) -> bool:
        """Whether a text encoder or a text adapter is trained."""
        return self.trains("te1") or self.trains("adapter")

    @property
    def length_matters(self) -> bool:
        """Whether the weights after a step also depend on how many steps follow: by the schedule, or by the text encoder's share."""
        partly_trained_text = self.trains_text and self.training.text_encoder_share < 1
        return self.optimizer.schedule in LENGTH_DEPENDENT or partly_trained_text

    def to_data(self) -> dict[str, Any]:
        """The configuration as plain JSON data. What a memory preset may still fill stays left out, until it is filled."""
        data: dict[str, Any] = self.model_dump(mode="json")
        if self.training.memory != "none":
            for key in PRESET_KEYS:
                section, name = key.split(".")
                if name not in getattr(self, section).model_fields_set:
                    del data[section][name]
        return data

    def to_json(self) -> str:
        """The configuration as indented JSON, which ``load_config`` reads again."""
        return json.dumps(self.to_data(), indent=2, ensure_ascii=False) + "\n"


def load_config(path: Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a TOML (or the run folder's JSON) file and apply ``key=value`` overrides.

    Relative paths inside the file mean relative to the file's folder; runs go to ``runs`` beside it unless it
    says otherwise. Raises UserError for anything wrong.
    """
    try:
        text = read_text(path, "configuration")
        data = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except RecursionError as error:
        raise UserError(f"The configuration {path} is nested too deeply.", kind="config") from error
    except ValueError as error:  # TOMLDecodeError and JSONDecodeError are ValueErrors
        raise UserError(
            f"The configuration {path} is not valid: {error}",
            _SEE_DOCS,
            kind="config",
        ) from error
    if not isinstance(data, dict):
        raise UserError(f"The configuration {path} must be a table of keys.", kind="config")
    _absolute_paths(data, path.resolve().parent)
    for override in overrides:
        apply_override(data, override, example="network.rank=8")
    return parse(data)


def parse(data: dict[str, Any]) -> RunConfig:
    """Validate plain data, in which ``preset`` may name values for what is left out. UserError lists every problem with its key."""
    try:
        return RunConfig.model_validate(expanded(data))
    except ValidationError as error:
        problems = describe_problems(error, Setting, keys())
        raise UserError(
            Message("The run configuration is not valid:\n", problems),
            _SEE_DOCS,
            kind="config",
        ) from error


def absolute(config: RunConfig) -> RunConfig:
    """``config`` with absolute paths; relative ones mean relative to the current folder. The child runs in another."""
    data = config.to_data()
    _absolute_paths(data, Path.cwd())
    return parse(data)


def keys() -> list[str]:
    """Every valid key with its section, for example ``network.rank``."""
    return list(settings_of(RunConfig))


def _absolute_paths(data: dict[str, Any], folder: Path) -> None:
    places = [(data.get(section), key) for section, key in _PATHS]
    dataset = data.get("dataset")
    more = dataset.get("more") if isinstance(dataset, dict) else None
    places += [(table, "path") for table in more] if isinstance(more, list) else []
    for table, key in places:
        value = table.get(key) if isinstance(table, dict) else None
        if isinstance(table, dict) and isinstance(value, str) and value and "\x00" not in value:
            candidate = folder / expand_home(value)
            # a hub id looks like a relative path: it stays as it is when nothing lies there
            if key != "checkpoint" or candidate.exists():
                table[key] = str(candidate)
    if isinstance(data.get("output", {}), dict):
        data.setdefault("output", {}).setdefault("runs", str(folder / "runs"))
