"""The run configuration: one typed, validated model that describes a training run completely.

The node builds it from its widgets, the command line reads it from a TOML file, and the run folder keeps a copy.
pydantic validates (ComfyUI already depends on it); this module adds errors that name the nearest valid key.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..core.errors import UserError
from ..core.files.paths import expand_home
from ..core.files.text_file import read_text
from ..core.messages import Action, Message, Setting
from .overrides import apply_override
from .presets import expanded
from .sample_prompts import read_prompt
from .validation_errors import describe_problems

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_SEE_DOCS = Message("Every setting is described in ", Action.READ_ABOUT_SETTINGS, ".")
Precision = Literal["auto", "bf16", "fp16", "fp32"]
Targets = Literal["all-linear", "attention", "all-linear+conv"]
Schedule = Literal[
    "constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "rex", "constant_with_warmup", "piecewise_constant"
]
Optimizer = Literal["adamw", "adamw8bit", "adafactor", "lion", "prodigy", "schedule-free"]
Loss = Literal["l2", "huber", "smooth_l1"]
HuberSchedule = Literal["constant", "exponential", "snr"]
TimestepSampling = Literal["uniform", "logit-normal"]
PredictionChoice = Literal["auto", "epsilon", "v-prediction"]
ZeroTerminal = Literal["auto", "on", "off"]
Switch = Literal["auto", "on", "off"]
MaxTokens = Literal[75, 150, 225]
MemoryPreset = Literal["none", "auto", "6gb", "8gb", "12gb", "16gb", "24gb"]
BasePrecision = Literal["same", "int8", "fp8", "nf4"]
Attention = Literal["auto", "sdpa", "xformers"]

# a part of diffusers' UNet: down_blocks.1, mid_block, up_blocks.0.attentions.2
BlockName = Annotated[str, Field(pattern=r"^(down_blocks\.\d+|mid_block|up_blocks\.\d+)(\.(attentions|resnets)\.\d+)?$")]

_PATHS = (("base", "checkpoint"), ("base", "lora"), ("base", "vae"), ("dataset", "path"), ("output", "runs"), ("output", "publish"))
_NUMBER = r"\d+(\.\d*)?([eE]-?\d+)?"
# what a memory preset fills (see memory.py): only keys that were left unset
PRESET_KEYS = ("training.gradient_checkpointing", "training.micro_batch_size", "training.base_precision", "optimizer.name")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_max_length=20_000)


class BaseModelSection(_Section):
    """The checkpoint that the LoRA is trained on."""

    lora: str = Field(default="", description="a LoRA file to go on from, of any tool; empty: from nothing")
    vae: str = Field(default="", description="a VAE in place of the checkpoint's own: a file or a diffusers folder; empty: its own")
    checkpoint: str = Field(description="single-file .safetensors, diffusers folder, or a hub id when online")


class MoreDataset(_Section):
    """A prepared dataset and its part of the training."""

    path: str = Field(description="folder with the dataset's manifest")
    repeats: Annotated[int, Field(ge=1, le=100_000)] = 1  # multiplies the pictures' own repeats: how often an epoch shows them
    loss_weight: Annotated[float, Field(ge=0, le=100)] = 1.0  # multiplies the pictures' own weights: how much each counts
    hash: Annotated[str, Field(pattern=r"^([0-9a-f]{16,64})?$")] = ""  # of the dataset that is meant, or its beginning; another is refused


class DatasetSection(MoreDataset):
    """The prepared dataset (a folder that ``prepare`` wrote), and further ones to train together with it."""

    more: tuple[MoreDataset, ...] = ()
    balance_regularisation: bool = True  # an epoch shows as many regularisation images as others, as kohya's trainer does


class NetworkSection(_Section):
    """What LoRA adds and where."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16  # enough for a style; larger files rarely look better
    alpha: Annotated[float, Field(gt=0, le=4096)] = 16.0  # scale alpha / rank = 1, so the learning rate means what it says
    targets: Targets = "all-linear"  # kohya's default: every Linear and 1x1 conv module of the transformers, 192 on SD 1.x
    conv_rank: Annotated[int, Field(ge=0, le=1024)] = 0  # of 3x3 convolutions (LoCon); 0: as rank
    conv_alpha: Annotated[float, Field(ge=0, le=4096)] = 0.0  # 0: as alpha
    block_ranks: dict[BlockName, Annotated[int, Field(ge=0, le=1024)]] = {}  # other ranks for parts of the UNet; 0 leaves one out
    block_alphas: dict[BlockName, Annotated[float, Field(gt=0, le=4096)]] = {}  # alpha of those parts, else as everywhere
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # 0.1 helps small datasets against memorising
    rslora: bool = False  # scale alpha / sqrt(rank), which keeps high ranks learning (Kalajdzievski 2023)
    dora: bool = False  # weight-decomposed (Liu et al. 2024): closer to full training, about a third slower
    unet: bool = True  # where styles and characters are learned
    text_encoder: bool = False  # off: prompts are encoded once and the encoder leaves memory; new words are learned without it too

    max_norm: Annotated[float, Field(ge=0, le=1000)] = 0.0  # 0: off; 1 keeps modules from outgrowing the others (kohya's value)

    @model_validator(mode="after")
    def _max_norm_without_magnitudes(self) -> NetworkSection:
        if self.max_norm and self.dora:
            raise ValueError("max_norm limits up times down, which DoRA scales to a magnitude of its own: use one of them")
        return self

    @model_validator(mode="after")
    def _conv_needs_targets(self) -> NetworkSection:
        if (self.conv_rank or self.conv_alpha) and self.targets != "all-linear+conv":
            raise ValueError('conv_rank and conv_alpha need targets = "all-linear+conv"')
        return self

    @model_validator(mode="after")
    def _something_is_trained(self) -> NetworkSection:
        if not (self.unet or self.text_encoder):
            raise ValueError("unet and text_encoder are both off: nothing would be trained")
        return self

    def size_of(self, module: str, kernel: Sequence[int]) -> tuple[int, float]:
        """Rank and alpha of ``module`` (a diffusers name) with a ``kernel`` (height, width; empty for a linear layer). Rank 0: not trained.

        The longest of ``block_ranks``' names that the module lies in decides.
        """
        conv = max(kernel, default=1) > 1
        rank = self.conv_rank or self.rank if conv else self.rank
        alpha = self.conv_alpha or self.alpha if conv else self.alpha
        inside = [name for name in (*self.block_ranks, *self.block_alphas) if f"{module}.".startswith(f"{name}.")]
        for name in sorted(inside, key=len):
            rank, alpha = self.block_ranks.get(name, rank), self.block_alphas.get(name, alpha)
        return rank, alpha


_LEAST_OF_PRODIGY = 0.1  # 1 is meant; with 1e-4 its estimate never leaves the 1e-6 that it starts from
_END_OF_POLYNOMIAL = 1e-7  # diffusers' lr_end


class OptimizerSection(_Section):
    """How weights follow gradients."""

    name: Optimizer = "adamw"  # the field's standard; the others trade memory or tuning against it
    lr: Annotated[float, Field(gt=0, le=10)] | Literal["auto"] = 1e-4  # the usual LoRA rate for SD 1.x
    # of the text encoders' LoRA; auto: half of lr, as they lose what they knew sooner (kohya's documentation has 5e-5 beside 1e-4)
    text_encoder_lr: Annotated[float, Field(gt=0, le=10)] | Literal["auto"] = "auto"
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01  # AdamW's own default
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    lora_plus_ratio: Annotated[float, Field(ge=1, le=1000)] = 1.0  # LoRA+: lr of up over lr of down; 1: off, 16: the paper's
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0  # 0 turns clipping off
    schedule: Schedule = "constant"  # what the reference run uses; cosine pays off on long runs
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    cycles: Annotated[int, Field(ge=1, le=1000)] = 1  # of cosine_with_restarts
    power: Annotated[float, Field(gt=0, le=10)] = 1.0  # of polynomial
    step_rules: str = ""  # of piecewise_constant, in diffusers' words: "1:100,0.1:200,0.01"

    @model_validator(mode="after")
    def _rules_for_pieces(self) -> OptimizerSection:
        if (self.schedule == "piecewise_constant") != bool(self.step_rules):
            raise ValueError("schedule piecewise_constant and step_rules belong together")
        if self.step_rules and not re.fullmatch(rf"({_NUMBER}:\d+,)*{_NUMBER}", self.step_rules):
            raise ValueError('step_rules are factors with the step up to which each holds, and a last factor: "1:100,0.1:200,0.01"')
        ends = [int(rule.split(":")[1]) for rule in self.step_rules.split(",")[:-1]]
        if sorted(set(ends)) != ends:
            raise ValueError("the steps of step_rules must rise")
        return self

    @model_validator(mode="after")
    def _no_schedule_for_schedule_free(self) -> OptimizerSection:
        if self.name == "schedule-free" and self.schedule != "constant":
            raise ValueError("schedule-free brings its own averaging: use schedule constant")
        return self

    @model_validator(mode="before")
    @classmethod
    def _prodigys_own_rate(cls, data: Any) -> Any:
        return {"lr": "auto", **data} if isinstance(data, dict) and data.get("name") == "prodigy" else data

    @model_validator(mode="after")
    def _one_rate_for_prodigy(self) -> OptimizerSection:
        if self.name != "prodigy":
            return self
        own = 1.0 if self.lr == "auto" else self.lr
        if own < _LEAST_OF_PRODIGY:
            raise ValueError(
                f"prodigy finds the rate itself and multiplies it by lr: with {own:g} it learns nothing. "
                'Set lr to 1, or to "auto" (0 on the canvas)'
            )
        if self.text_encoder_lr not in ("auto", own):
            raise ValueError('prodigy finds one rate for everything: leave text_encoder_lr at "auto"')
        if self.lora_plus_ratio != 1:
            raise ValueError("prodigy finds one rate for everything: leave lora_plus_ratio at 1")
        return self

    @model_validator(mode="after")
    def _rate_above_the_last(self) -> OptimizerSection:
        if self.schedule == "polynomial" and self.lr != "auto" and self.lr <= _END_OF_POLYNOMIAL:
            raise ValueError(f"schedule polynomial ends at a rate of {_END_OF_POLYNOMIAL:g}: lr must be above it")
        return self


class ObjectiveSection(_Section):
    """What the error is measured against, and how much each noise level counts. The defaults are plain DDPM."""

    prediction: PredictionChoice = "auto"  # the checkpoint's markers, metadata or configuration know it
    zero_terminal_snr: ZeroTerminal = "auto"  # likewise; only v-prediction models have it
    min_snr_gamma: Annotated[float, Field(ge=0, le=1000)] = 0.0  # 0: off; 5 is the paper's value and evens out noise levels
    debiased: bool = False  # debiased estimation; an alternative to min-SNR, so not with it
    loss: Loss = "l2"  # what the model was pretrained with
    huber_c: Annotated[float, Field(gt=0, le=10)] = 0.1  # where huber and smooth_l1 turn from squared to absolute
    huber_schedule: HuberSchedule = "snr"  # kohya's default: more forgiving at high noise
    noise_offset: Annotated[float, Field(ge=0, le=1)] = 0.0  # 0.05 lets very dark and very bright pictures be learned
    multires_iterations: Annotated[int, Field(ge=0, le=16)] = 0  # 0: off; 6 to 10 with a discount of 0.3 is usual
    multires_discount: Annotated[float, Field(ge=0, le=1)] = 0.3
    input_perturbation: Annotated[float, Field(ge=0, le=1)] = 0.0  # 0.1 in the paper: less exposure bias
    timestep_min: Annotated[int, Field(ge=0, le=999)] = 0
    timestep_max: Annotated[int, Field(ge=1, le=1000)] = 1000  # exclusive
    timestep_sampling: TimestepSampling = "uniform"  # as in pretraining
    logit_mean: Annotated[float, Field(ge=-10, le=10)] = 0.0
    logit_std: Annotated[float, Field(gt=0, le=10)] = 1.0

    @model_validator(mode="after")
    def _makes_sense(self) -> ObjectiveSection:
        if self.min_snr_gamma and self.debiased:
            raise ValueError("min_snr_gamma and debiased are two answers to the same question: use one of them")
        if self.prediction == "epsilon" and self.zero_terminal_snr == "on":
            raise ValueError("with zero_terminal_snr the last timestep is pure noise, from which predicting the noise learns nothing")
        if self.timestep_min >= self.timestep_max:
            raise ValueError(f"timestep_min {self.timestep_min} is not below timestep_max {self.timestep_max}")
        return self


class TrainingSection(_Section):
    """The loop."""

    epochs: Annotated[int, Field(ge=1, le=100_000)] = 5
    max_steps: Annotated[int, Field(ge=0, le=100_000_000)] = 0  # 0: as many as the epochs make
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 1
    gradient_accumulation: Annotated[int, Field(ge=1, le=1024)] = 2
    precision: Precision = "auto"  # bf16 where the device computes in it, else fp16 on CUDA, else fp32
    gradient_checkpointing: bool = False  # saves memory, costs about a fifth of the speed
    seed: Annotated[int, Field(ge=0, le=0xFFFF_FFFF)] = 42
    checkpoint_every: Annotated[int, Field(ge=0)] = 500  # steps; 0: only at the end
    keep_checkpoints: Annotated[int, Field(ge=0)] = 0  # newest resumable states to keep; 0: all
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0  # 0: off; 0.99 to 0.999 smooths what the last steps happened to see
    device: Literal["auto", "cpu", "cuda"] = "auto"
    clip_skip: Annotated[int, Field(ge=0, le=12)] = 0  # layer of the text encoder from the end; 0: the model's own, 2: many anime SD 1.5
    max_tokens: MaxTokens = 75  # what CLIP reads at once, as in kohya's trainer; longer ones cost memory for every caption
    text_encoder_share: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the run, after which the text encoder is left as it is
    processes: Annotated[int, Field(ge=0, le=1024)] = 1  # that share each step, one a GPU; 0: as many as there are GPUs
    memory: MemoryPreset = "none"  # a GPU's size: fills what saves memory and was left unset; none, as it costs speed
    base_precision: BasePrecision = "same"  # how the frozen UNet is stored; same as precision: nothing is lost
    micro_batch_size: Annotated[int, Field(ge=0, le=1024)] = 0  # images in one pass through the UNet; 0: the whole batch, which is fastest
    attention: Attention = "auto"  # xformers where its call really works, else torch's own
    compile: bool = False  # torch.compile: minutes at the start, so it pays off on long runs only
    cuda_graphs: Switch = "auto"  # passes recorded and replayed: what Python costs a step is gone; auto: on a GPU with room for it
    fused: Switch = "auto"  # a UNet's norms, activations and sums in kernels of our own; auto: with channels-last on a GPU that has Triton
    channels_last: Switch = "auto"  # memory layout of convolutions: on on a CPU and where tensor cores want it (CUDA in bf16 or fp16)


class SampleSection(_Section):
    """Validation images: before the first step and after each epoch, with fixed seeds."""

    prompts: tuple[str, ...] = ()
    negative: str = ""
    steps: Annotated[int, Field(ge=1, le=1000)] = 20
    guidance: Annotated[float, Field(ge=0, le=100)] = 7.5
    seed: Annotated[int, Field(ge=0, le=0xFFFF_FFFF)] = 42
    every_epochs: Annotated[int, Field(ge=0)] = 1  # 0: none
    width: Annotated[int, Field(ge=0, le=8192)] = 0  # 0: the dataset's resolution
    height: Annotated[int, Field(ge=0, le=8192)] = 0

    @field_validator("prompts", mode="before")
    @classmethod
    def _one_prompt_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("prompts")
    @classmethod
    def _flags_have_values(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for prompt in value:
            read_prompt(prompt)
        return value

    @field_validator("width", "height")
    @classmethod
    def _multiple_of_eight(cls, value: int) -> int:
        if value % 8:
            raise ValueError(f"must be a multiple of 8 (the VAE's factor), for example {value // 8 * 8 or 8}")
        return value


class ValidationSection(_Section):
    """Pictures that are not trained on: their loss tells learning from memorising."""

    share: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # of the pictures; 0: none, because a style's dataset is small
    max_pictures: Annotated[int, Field(ge=1, le=10_000)] = 16  # held out at most: every one costs noise_levels forward passes
    every_epochs: Annotated[int, Field(ge=1)] = 1
    noise_levels: Annotated[int, Field(ge=1, le=100)] = 4  # timesteps for each picture, spread evenly
    seed: Annotated[int, Field(ge=0, le=0xFFFF_FFFF)] = 42  # not the training's, so that runs of other seeds compare


class OutputSection(_Section):
    """Where results go. Not part of the run's identity: moving a folder does not train again."""

    runs: str = "runs"  # run folders are made below this
    publish: str = ""  # folder that gets the finished LoRA (models/loras); empty: only the run folder
    tensorboard: bool = True
    wandb: bool = False  # it sends data to a service unless WANDB_MODE says offline
    prune_days: Annotated[int, Field(ge=0, le=36_500)] = 30  # states of finished runs and caches older than this go after a run; 0: never

    @field_validator("runs", "publish")
    @classmethod
    def _is_a_path(cls, value: str) -> str:
        if "\x00" in value:
            raise ValueError("a path holds no NUL character")
        return value


class RunConfig(_Section):
    """A whole training run."""

    name: Annotated[str, Field(min_length=1, max_length=200)] = "my_lora"
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

    def identity(self) -> dict[str, Any]:
        """The part that determines the result, as plain JSON data: everything but paths, output places and who shares the work."""
        # which datasets, and how often each, is in the datasets' common hash; a memory preset is what it fills in
        data = self.model_dump(mode="json", exclude={"output": True, "base": True, "dataset": True, "training": {"memory", "processes"}})
        if not self.dataset.balance_regularisation:
            data["dataset"] = {"balance_regularisation": False}
        return dict(data)

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
        """The configuration as indented JSON, which ``load`` reads again."""
        return json.dumps(self.to_data(), indent=2, ensure_ascii=False) + "\n"


def load(path: Path, overrides: Iterable[str] = ()) -> RunConfig:
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
    return list(_keys(RunConfig, ""))


def _keys(model: type[BaseModel], prefix: str) -> Iterable[str]:
    for name, info in model.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _keys(annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


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


SCHEDULES: tuple[str, ...] = get_args(Schedule)
TARGETS: tuple[str, ...] = get_args(Targets)
PRECISIONS: tuple[str, ...] = get_args(Precision)
MEMORY_PRESETS: tuple[str, ...] = get_args(MemoryPreset)
BASE_PRECISIONS: tuple[str, ...] = get_args(BasePrecision)
ATTENTIONS: tuple[str, ...] = get_args(Attention)
