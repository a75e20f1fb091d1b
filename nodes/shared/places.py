"""Which widget of which node says which key of the run configuration. Every key is here, or in ``NOT_ON_A_NODE`` with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...trainer.config.run_config import PRESET_KEYS, RunConfig

PREFIX = "AnimeLoRA_"
Places = Mapping[str, str]

TRAIN_LORA: Places = {
    "name": "name",
    "checkpoint": "base.checkpoint",
    "epochs": "training.epochs",
    "rank": "network.rank",
    "learning_rate": "optimizer.lr",
    "batch_size": "training.batch_size",
    "gradient_accumulation": "training.gradient_accumulation",
    "validation_prompts": "sample.prompts",
    "checkpoint_every": "training.checkpoint_every",
    "training_seed": "training.seed",
    "precision": "training.precision",
    "alpha": "network.alpha",
    "targets": "network.targets",
    "schedule": "optimizer.schedule",
    "warmup_steps": "optimizer.warmup_steps",
    "max_steps": "training.max_steps",
    "gradient_checkpointing": "training.gradient_checkpointing",
    "validation_steps": "sample.steps",
    "validation_guidance": "sample.guidance",
    "validate_every": "sample.every_epochs",
    "preset": "preset",
}
TRAIN_OPTIONS: Places = {
    "optimizer": "optimizer.name",
    "weight_decay": "optimizer.weight_decay",
    "max_grad_norm": "optimizer.max_grad_norm",
    "lora_plus_ratio": "optimizer.lora_plus_ratio",
    "min_snr_gamma": "objective.min_snr_gamma",
    "loss": "objective.loss",
    "noise_offset": "objective.noise_offset",
    "multires_iterations": "objective.multires_iterations",
    "input_perturbation": "objective.input_perturbation",
    "timestep_min": "objective.timestep_min",
    "timestep_max": "objective.timestep_max",
    "timestep_sampling": "objective.timestep_sampling",
    "keep_checkpoints": "training.keep_checkpoints",
    "validation_negative": "sample.negative",
    "validation_seed": "sample.seed",
    "validation_width": "sample.width",
    "validation_height": "sample.height",
    "conv_rank": "network.conv_rank",
    "conv_alpha": "network.conv_alpha",
    "dropout": "network.dropout",
    "rslora": "network.rslora",
    "dora": "network.dora",
    "prediction": "objective.prediction",
    "zero_terminal_snr": "objective.zero_terminal_snr",
    "balance_regularisation": "dataset.balance_regularisation",
    "vae": "base.vae",
}
NETWORK_OPTIONS: Places = {
    "continue_from": "base.lora",
    "block_ranks": "network.block_ranks",
    "block_alphas": "network.block_alphas",
    "max_norm": "network.max_norm",
    "train_unet": "network.unet",
    "train_text_encoder": "network.text_encoder",
    "text_encoder_lr": "optimizer.text_encoder_lr",
    "text_encoder_share": "training.text_encoder_share",
    "clip_skip": "training.clip_skip",
    "max_tokens": "training.max_tokens",
}
LEARNING_OPTIONS: Places = {
    "beta1": "optimizer.beta1",
    "beta2": "optimizer.beta2",
    "epsilon": "optimizer.eps",
    "restarts": "optimizer.cycles",
    "power": "optimizer.power",
    "step_rules": "optimizer.step_rules",
    "ema_decay": "training.ema_decay",
    "debiased": "objective.debiased",
    "huber_c": "objective.huber_c",
    "huber_schedule": "objective.huber_schedule",
    "multires_discount": "objective.multires_discount",
    "logit_mean": "objective.logit_mean",
    "logit_std": "objective.logit_std",
}
MACHINE_OPTIONS: Places = {
    "device": "training.device",
    "tensorboard": "output.tensorboard",
    "prune_days": "output.prune_days",
    "gpus": "training.processes",
    "memory": "training.memory",
    "base_precision": "training.base_precision",
    "micro_batch_size": "training.micro_batch_size",
    "attention": "training.attention",
    "compile": "training.compile",
    "channels_last": "training.channels_last",
}
MONITOR_OPTIONS: Places = {
    "held_out": "validation.share",
    "most_held_out": "validation.max_pictures",
    "measure_every": "validation.every_epochs",
    "noise_levels": "validation.noise_levels",
    "held_out_seed": "validation.seed",
}
BY_NODE: Mapping[str, Places] = {
    "TrainLora": TRAIN_LORA,
    "TrainOptions": TRAIN_OPTIONS,
    "NetworkOptions": NETWORK_OPTIONS,
    "LearningOptions": LEARNING_OPTIONS,
    "MachineOptions": MACHINE_OPTIONS,
    "MonitorOptions": MONITOR_OPTIONS,
}
NOT_ON_A_NODE: Mapping[str, str] = {  # no widget with that very meaning, and why
    "dataset.path": "the dataset socket of Train LoRA carries it from Dataset Prep",
    "dataset.repeats": "Combine Datasets says it for each of its datasets, and the dataset socket carries it",
    "dataset.loss_weight": "Combine Datasets says it for each of its datasets, and the dataset socket carries it",
    "dataset.hash": "the dataset socket of Train LoRA carries it from Dataset Prep",
    "dataset.more": "Combine Datasets makes the list, and the dataset socket carries it",
    "training.cuda_graphs": "auto turns itself off where it does not help or does not work; saying otherwise is for measuring",
    "training.fused": "auto turns itself off where its kernels do not work; saying otherwise is for measuring",
    "output.runs": "inside ComfyUI runs lie below its output folder, where nothing from a graph can move them",
    "output.wandb": "set in a TOML file: nothing that a graph brings along may send data away",
    "output.publish": "finished files go to ComfyUI's own LoRA folder, where Load LoRA's menu finds them",
}


def sections(places: Places, widgets: Mapping[str, Any]) -> dict[str, Any]:
    """The values of those ``widgets`` that have a place, as nested sections of the run configuration. A widget left out says nothing."""
    found: dict[str, Any] = {}
    for widget, key in places.items():
        if widget in widgets:
            section, _, name = key.rpartition(".")
            table = found.setdefault(section, {}) if section else found
            table[name] = widgets[widget]
    return found


def left_to_memory_preset(data: dict[str, Any]) -> dict[str, Any]:
    """``data`` without what a memory preset may fill, where a widget stands as it came: a widget always has a value, and only one
    that somebody changed says something."""
    if data.get("training", {}).get("memory", "none") == "none":
        return data
    reference = RunConfig.model_validate({"base": {"checkpoint": "-"}, "dataset": {"path": "-"}}).model_dump()
    for key in PRESET_KEYS:
        section, _, name = key.partition(".")
        table = data.get(section, {})
        if table.get(name) == reference[section][name]:
            table.pop(name, None)
    return data


def widgets(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Values of keys of the configuration as those of widgets: node id -> widget -> value."""
    found = {f"{PREFIX}{node}": {widget: values[key] for widget, key in table.items() if key in values} for node, table in BY_NODE.items()}
    return {node: table for node, table in found.items() if table}


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of ``under`` with those of ``over`` laid over them, key by key."""
    result = dict(under)
    for name, value in over.items():
        own = result.get(name)
        result[name] = {**own, **value} if isinstance(own, Mapping) and isinstance(value, Mapping) else value
    return result
