"""Write trained weights as a LoRA file: kohya's keys, fp16, and metadata that describes the training."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ... import lorafile
from ...adapters.adapter import component_of
from ...adapters.frozen_lora import tensors_of
from ...config.run_config import RunConfig
from ...config.sections.objective import ObjectiveSection
from ...core.prompt_syntax import unescape
from ...dataset import Dataset, Item
from ...dataset.captions.tags import tags_of
from ...dataset.loading.combine import dataset_trigger_phrase
from ...families import EPSILON, FLOW, BaseCheckpoint, Family, Prediction
from ...lorafile.writing.metadata import most_frequent
from ...runs.run_plan import RunPlan
from ..optimizers import OPTIMIZER_CLASS, learning_rate, optimizer_arguments, text_learning_rate

if TYPE_CHECKING:
    import torch
    from PIL import Image


@dataclass(frozen=True)
class Exporter:
    """Writes LoRA files of one run. ``started_at`` is the day of its first start: see ``run_times.start_day``."""

    config: RunConfig
    dataset: Dataset
    family: Family
    checkpoint: BaseCheckpoint
    base_identity: str
    plan: RunPlan
    started_at: float
    prediction: Prediction = EPSILON
    frozen: Sequence[lorafile.LoraModule] = ()  # layers of ``base.lora`` that are not trained

    @cached_property
    def base_legacy_hash(self) -> str:
        """A1111's short hash of the checkpoint. Read while the checkpoint exists, and cached."""
        return lorafile.legacy_hash(self.checkpoint.path) if self.checkpoint.kind == "file" else ""

    def write(
        self, path: Path, weights: Mapping[str, torch.Tensor], *, step: int, loss: float, thumbnail: Image.Image | None = None
    ) -> None:
        """Write ``weights`` (fp32, named as in ``adapter.state``) as a LoRA file and check the file.

        Raises UserError when the weights are not finite or all zero.
        """
        import torch

        network = self.config.network
        tensors: dict[str, torch.Tensor] = {}
        for name, value in weights.items():
            module, _, side = name.rpartition(".")
            key = _kohya_key(self.family.name, module)
            if side == "magnitude":  # one number per output, with as many axes as the weight, as in LyCORIS
                axes = weights[f"{module}.down"].ndim
                # fp32: rounding to fp16 would change the whole weight by 0.02 %, and LoRA changes it by a few percent only
                tensors[f"{key}.dora_scale"] = value.float().reshape(-1, *[1] * (axes - 1))
                continue
            tensors[f"{key}.lora_{side}.weight"] = value.to(torch.float16)
            if side == "down":
                rank, alpha = network.size_of(lorafile.settings_name(self.family.name, module), value.shape[2:])
                # every tool scales by alpha / rank: for rank-stabilised LoRA, the file has the alpha that gives the same scale
                tensors[f"{key}.alpha"] = _scalar(alpha * math.sqrt(rank) if network.rslora else alpha)
        tensors |= tensors_of(self.family.name, self.frozen)
        lorafile.save_lora(path, tensors, self._metadata(step, loss, thumbnail))

    def _metadata(self, step: int, loss: float, thumbnail: Image.Image | None) -> dict[str, str]:
        config, dataset, training = self.config, self.dataset, self.config.training
        regular = [item for item in dataset.items if not item.is_regularisation]
        repeats = Counter(item.repeats for item in regular).most_common(1)
        optimizer = config.optimizer
        lr = learning_rate(optimizer, self.family.learning_rate, config.network.rank)
        facts = lorafile.TrainingFacts(
            name=config.name,
            family=self.family.name,
            rank=config.network.rank,
            alpha=config.network.alpha,
            base_name=self.checkpoint.name,
            base_hash=self.base_identity if self.checkpoint.kind == "file" else "",
            base_legacy_hash=self.base_legacy_hash,
            prediction_type=self.prediction.kind,
            targets=config.network.targets,
            network_dropout=config.network.dropout or None,
            network_args=_network_args(config),
            lr=lr,
            trains_unet=config.network.unet,
            text_encoder_lr=text_learning_rate(optimizer, lr) if config.network.text_encoder else None,
            clip_skip=training.clip_skip or None,
            max_tokens=training.max_tokens,
            optimizer=OPTIMIZER_CLASS[optimizer.name],
            optimizer_args=optimizer_arguments(optimizer),
            scheduler=optimizer.schedule,
            warmup_steps=optimizer.warmup_steps,
            min_snr_gamma=config.objective.min_snr_gamma or None,
            noise_offset=config.objective.noise_offset or None,
            max_grad_norm=optimizer.max_grad_norm,
            gradient_checkpointing=training.gradient_checkpointing,
            precision="no" if self.plan.precision == "fp32" else self.plan.precision,
            seed=training.seed,
            epochs=-(-step // self.plan.steps_per_epoch),
            planned_epochs=self.plan.epochs,
            steps=step,
            max_steps=self.plan.steps,
            batch_size=training.batch_size,
            accumulation=training.gradient_accumulation,
            loss=round(loss, 6),
            started_at=self.started_at,
            finished_at=self.started_at,
            dataset_name=dataset.name,
            dataset_hash=dataset.hash,
            image_count=len(regular),
            regularisation_count=len(dataset.items) - len(regular),
            repeats=repeats[0][0] if repeats else 1,
            images_seen=sum(item.repeats for item in regular),
            resolution=dataset.resolution,
            buckets=self.plan.buckets,
            tag_frequency={dataset.name: _tag_frequency(regular, dataset.training.keep_tokens_separator)},
            trigger=dataset.trigger,
            class_description=dataset.class_description,
            shuffle_caption=dataset.training.shuffle_caption,
            keep_tokens=dataset.training.keep_tokens,
            caption_dropout=dataset.training.caption_dropout,
            tag_dropout=dataset.training.tag_dropout,
            flip=dataset.training.flip,
            subsets=_subsets(dataset) if len(dataset.members) > 1 else (),
            thumbnail=thumbnail,
            extra={
                **({"ss_vae_name": self.checkpoint.vae.name} if self.checkpoint.vae else {}),
                **({"ss_zero_terminal_snr": "True"} if self.prediction.zero_terminal_snr else {}),
                **_objective_facts(config, dataset),
                **(_flow_facts(config.objective) if self.prediction.kind == FLOW else {}),
            },
        )
        return lorafile.build_metadata(facts)


def _flow_facts(objective: ObjectiveSection) -> dict[str, str]:
    """How the noise levels of a rectified flow were sampled, under kohya's names, whose ``sigmoid`` and ``shift`` are logit-normal."""
    sampling: str = objective.timestep_sampling
    if sampling == "logit-normal":
        sampling = "sigmoid" if objective.timestep_shift == 1 else "shift"
    values = {"ss_timestep_sampling": sampling, "ss_discrete_flow_shift": str(objective.timestep_shift), "ss_weighting_scheme": "none"}
    if objective.timestep_sampling == "logit-normal":
        values |= {"ss_sigmoid_scale": str(objective.logit_std), "ss_logit_mean": str(objective.logit_mean)}
    if objective.resolution_shift:
        values["animelora.resolution_shift"] = "True"
    return values


def _objective_facts(config: RunConfig, dataset: Dataset) -> dict[str, str]:
    """Settings of loss, noise and weights that differ from kohya's defaults, under kohya's names if there are any."""
    objective = config.objective
    values: dict[str, str] = {}
    if objective.loss != "l2":
        values |= {"ss_loss_type": objective.loss, "ss_huber_schedule": objective.huber_schedule, "ss_huber_c": str(objective.huber_c)}
    if objective.debiased:
        values["ss_debiased_estimation"] = "True"
    if objective.multires_iterations:
        values["ss_multires_noise_iterations"] = str(objective.multires_iterations)
        values["ss_multires_noise_discount"] = str(objective.multires_discount)
    if objective.input_perturbation:
        values["ss_ip_noise_gamma"] = str(objective.input_perturbation)
    if config.network.max_norm:
        values["ss_scale_weight_norms"] = str(config.network.max_norm)
    if config.trains("adapter"):
        values["animelora.text_adapter_lr"] = str(config.optimizer.text_adapter_lr)
    if config.training.ema_decay:
        values["animelora.ema_decay"] = str(config.training.ema_decay)
    prior = {item.weight for item in dataset.items if item.is_regularisation}
    if len(prior) == 1:
        values["ss_prior_loss_weight"] = str(*prior)
    return values


def _subsets(dataset: Dataset) -> tuple[lorafile.SubsetFacts, ...]:
    """The facts about each dataset of the run."""
    facts = []
    for member in dataset.members:
        own = [item for index, item in enumerate(dataset.items) if dataset.member(index) is member]
        regular = [item for item in own if not item.is_regularisation]
        repeats = Counter(item.repeats for item in regular).most_common(1)
        weights = Counter(item.weight for item in regular).most_common(1)
        training = member.training
        facts.append(
            lorafile.SubsetFacts(
                name=member.name,
                image_count=len(regular),
                images_seen=sum(item.repeats for item in regular),
                repeats=repeats[0][0] if repeats else 1,
                tag_frequency=_tag_frequency(regular, training.keep_tokens_separator),
                class_tokens=dataset_trigger_phrase(member),
                regularisation_count=len(own) - len(regular),
                loss_weight=weights[0][0] if weights else 1.0,
                shuffle_caption=training.shuffle_caption,
                keep_tokens=training.keep_tokens,
                caption_dropout=training.caption_dropout,
                tag_dropout=training.tag_dropout,
                flip=training.flip,
            )
        )
    return tuple(facts)


def tags_left_out(dataset: Dataset) -> int:
    """The number of tags, the rarest ones, that do not fit into the metadata of a LoRA."""
    frequency: dict[str, dict[str, int]] = {}
    for number, member in enumerate(dataset.members):
        own = [item for index, item in enumerate(dataset.items) if dataset.member(index) is member and not item.is_regularisation]
        frequency[str(number)] = _tag_frequency(own, member.training.keep_tokens_separator)
    return most_frequent(frequency)[1]


def _tag_frequency(items: Iterable[Item], separator: str) -> dict[str, int]:
    tags = Counter(unescape(tag) for item in items for tag in tags_of(item.caption, separator))
    return dict(tags.most_common())


def _kohya_key(family: str, module: str) -> str:
    """The key of a module, from its name in ``adapter``."""
    component = component_of(module)
    if component == "unet":
        return lorafile.kohya_unet_key(family, module)
    return lorafile.kohya_text_encoder_key(family, component, module.removeprefix(f"{component}."))


def _network_args(config: RunConfig) -> dict[str, object]:
    """Settings of the network besides rank and alpha, under kohya's and LyCORIS' names if there are any."""
    network = config.network
    values: dict[str, object] = {}
    if network.targets == "all-linear+conv":
        values |= {"conv_dim": network.conv_rank or network.rank, "conv_alpha": network.conv_alpha or network.alpha}
    elif network.targets != "all-linear":
        values["targets"] = network.targets
    if config.trains("adapter"):
        values["train_llm_adapter"] = "True"
    for name in network.beyond_targets:
        values[name] = True
    if network.block_ranks:
        values["block_ranks"] = dict(network.block_ranks)
    if network.block_alphas:
        values["block_alphas"] = dict(network.block_alphas)
    if network.rslora:
        values["rs_lora"] = True
    if network.dora:
        values["dora_wd"] = True
    return values


def _scalar(value: float) -> torch.Tensor:
    """``value`` in fp16 as the weights, or in fp32 if fp16 would round it."""
    import torch

    half = torch.tensor(value, dtype=torch.float16)
    return half if float(half) == value else torch.tensor(value, dtype=torch.float32)
