"""Which node shows which setting of a training run, one line each. Every setting is here, or in ``NOT_ON_A_NODE`` with the reason.

New widgets go to the end of their node: saved workflows know widgets by their position.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ....trainer.config.run_config import PRESET_KEYS, RunConfig
from ....trainer.config.setting import settings_of
from .values import numbers_by_block, prompts
from .widget import NodeWidgets, Widget

OWN_VAE = "(the checkpoint's own)"
OWN_TEXT_ENCODER = "(the model's own)"
NO_LORA = "(nothing)"

TRAIN_LORA_WIDGETS = NodeWidgets(
    "TrainLora",
    "Train LoRA",
    RunConfig,
    (
        "dataset",
        Widget("checkpoint", "base.checkpoint", required=True),
        Widget("name", "name", default="my_anime_style", because="what the reference run trains", required=True),
        Widget("epochs", "training.epochs", max=10_000),
        Widget("rank", "network.rank"),
        Widget("learning_rate", "optimizer.lr", note="0 lets the trainer choose for your model.", max=1, step=1e-6),
        Widget("batch_size", "training.batch_size", max=256),
        Widget("gradient_accumulation", "training.gradient_accumulation", max=256, advanced=True),
        Widget(
            "validation_prompts",
            "sample.prompts",
            note="One prompt a line.",
            default="myAnimeStyleToken anime_face girl, high quality",
            because="the caption that Dataset Prep writes with its defaults",
            read=prompts,
            multiline=True,
        ),
        Widget("checkpoint_every", "training.checkpoint_every", max=1_000_000, advanced=True),
        Widget("training_seed", "training.seed", rolls=False, advanced=True),
        Widget("precision", "training.precision", advanced=True),
        Widget("alpha", "network.alpha", min=0.01, step=0.5, advanced=True),
        Widget("targets", "network.targets", advanced=True),
        Widget("schedule", "optimizer.schedule", advanced=True),
        Widget("warmup_steps", "optimizer.warmup_steps", max=100_000, advanced=True),
        Widget("max_steps", "training.max_steps", max=1_000_000, advanced=True),
        Widget("gradient_checkpointing", "training.gradient_checkpointing", advanced=True),
        Widget("validation_steps", "sample.steps", max=200, advanced=True),
        Widget("validation_guidance", "sample.guidance", max=30, step=0.1, advanced=True),
        Widget("validate_every", "sample.every_epochs", max=10_000, advanced=True),
        "options",
        "preset",
    ),
)
TRAIN_OPTIONS_WIDGETS = NodeWidgets(
    "TrainOptions",
    "Train Options",
    RunConfig,
    (
        Widget("optimizer", "optimizer.name"),
        Widget("weight_decay", "optimizer.weight_decay", step=0.001),
        Widget("max_grad_norm", "optimizer.max_grad_norm", max=100, step=0.1, advanced=True),
        Widget("lora_plus_ratio", "optimizer.lora_plus_ratio", step=0.5, advanced=True),
        Widget("min_snr_gamma", "objective.min_snr_gamma", step=0.5),
        Widget("loss", "objective.loss", advanced=True),
        Widget("noise_offset", "objective.noise_offset", step=0.01),
        Widget("multires_iterations", "objective.multires_iterations", advanced=True),
        Widget("input_perturbation", "objective.input_perturbation", step=0.01, advanced=True),
        Widget("timestep_min", "objective.timestep_min", advanced=True),
        Widget("timestep_max", "objective.timestep_max", advanced=True),
        Widget("timestep_sampling", "objective.timestep_sampling", advanced=True),
        Widget("keep_checkpoints", "training.keep_checkpoints", max=1000),
        Widget("validation_negative", "sample.negative", multiline=True),
        Widget("validation_seed", "sample.seed", rolls=False, advanced=True),
        Widget("validation_width", "sample.width", max=4096, step=8),
        Widget("validation_height", "sample.height", max=4096, step=8),
        Widget("conv_rank", "network.conv_rank"),
        Widget("conv_alpha", "network.conv_alpha", step=0.5, advanced=True),
        Widget("dropout", "network.dropout", max=0.99, step=0.01),
        Widget("rslora", "network.rslora", advanced=True),
        Widget("dora", "network.dora"),
        Widget("prediction", "objective.prediction"),
        Widget("zero_terminal_snr", "objective.zero_terminal_snr", advanced=True),
        "options",
        Widget("balance_regularisation", "dataset.balance_regularisation", advanced=True),
        Widget("vae", "base.vae", default=OWN_VAE, because="a menu's words for no path"),
        Widget("validation_shift", "sample.shift", step=0.1),
        Widget("text_encoder", "base.text_encoder", default=OWN_TEXT_ENCODER, because="a menu's words for no path"),
        Widget("empty_prompt", "training.empty_prompt"),
    ),
)
NETWORK_OPTIONS_WIDGETS = NodeWidgets(
    "NetworkOptions",
    "Network Options",
    RunConfig,
    (
        Widget("continue_from", "base.lora", note="(nothing) starts a new LoRA.", default=NO_LORA, because="a menu's words for no path"),
        Widget("block_ranks", "network.block_ranks", note="One part a line.", read=numbers_by_block, multiline=True),
        Widget("block_alphas", "network.block_alphas", note="One part a line.", read=numbers_by_block, multiline=True),
        Widget("train_unet", "network.unet"),
        Widget("train_text_encoder", "network.text_encoder"),
        Widget("text_encoder_lr", "optimizer.text_encoder_lr", note="0 uses half the rate of Train LoRA.", max=1, step=1e-6),
        Widget("text_encoder_share", "training.text_encoder_share", min=0.01, step=0.05),
        Widget("clip_skip", "training.clip_skip"),
        Widget("max_tokens", "training.max_tokens"),
        Widget("max_norm", "network.max_norm", step=0.1),
        "lora",
        "options",
        Widget("train_modulation", "network.modulation"),
        Widget("train_final_layer", "network.final_layer"),
        Widget("text_adapter_lr", "optimizer.text_adapter_lr", max=1, step=1e-6),
    ),
)
LEARNING_OPTIONS_WIDGETS = NodeWidgets(
    "LearningOptions",
    "Learning Options",
    RunConfig,
    (
        Widget("beta1", "optimizer.beta1", max=0.9999, step=0.001),
        Widget("beta2", "optimizer.beta2", max=0.9999, step=0.001),
        Widget("epsilon", "optimizer.eps", min=1e-12, step=1e-9),
        Widget("restarts", "optimizer.cycles"),
        Widget("power", "optimizer.power", min=0.01, step=0.1),
        Widget("debiased", "objective.debiased"),
        Widget("huber_c", "objective.huber_c", min=0.0001, step=0.01),
        Widget("huber_schedule", "objective.huber_schedule"),
        Widget("multires_discount", "objective.multires_discount", step=0.05),
        Widget("logit_mean", "objective.logit_mean", step=0.1),
        Widget("logit_std", "objective.logit_std", min=0.01, step=0.1),
        Widget("step_rules", "optimizer.step_rules"),
        Widget("ema_decay", "training.ema_decay", max=0.9999, step=0.001),
        "options",
        Widget("timestep_shift", "objective.timestep_shift", min=0.01, step=0.1),
        Widget("resolution_shift", "objective.resolution_shift"),
    ),
)
MACHINE_OPTIONS_WIDGETS = NodeWidgets(
    "MachineOptions",
    "Machine Options",
    RunConfig,
    (
        Widget("device", "training.device"),
        Widget("tensorboard", "output.tensorboard"),
        Widget("prune_days", "output.prune_days"),
        Widget("memory", "training.memory"),
        Widget("base_precision", "training.base_precision"),
        Widget("micro_batch_size", "training.micro_batch_size"),
        Widget("attention", "training.attention"),
        Widget("compile", "training.compile"),
        Widget("channels_last", "training.channels_last"),
        "options",
        Widget("gpus", "training.processes"),
        Widget("swap_blocks", "training.swap_blocks"),
    ),
)
MONITOR_OPTIONS_WIDGETS = NodeWidgets(
    "MonitorOptions",
    "Monitor Options",
    RunConfig,
    (
        Widget("held_out", "validation.share", step=0.01),
        Widget("most_held_out", "validation.max_pictures"),
        Widget("measure_every", "validation.every_epochs", max=10_000),
        Widget("noise_levels", "validation.noise_levels"),
        Widget("held_out_seed", "validation.seed", rolls=False),
        Widget("checkpoint_every_epochs", "training.checkpoint_epochs", max=10_000),
        "options",
    ),
)
NODES = (
    TRAIN_LORA_WIDGETS,
    TRAIN_OPTIONS_WIDGETS,
    NETWORK_OPTIONS_WIDGETS,
    LEARNING_OPTIONS_WIDGETS,
    MACHINE_OPTIONS_WIDGETS,
    MONITOR_OPTIONS_WIDGETS,
)
TITLE_AND_WIDGET: Mapping[str, tuple[str, str]] = {  # by key of the configuration, for messages: ("Train LoRA", "rank")
    widget.key: (node.title, widget.name) for node in NODES for widget in node.widgets
}
NOT_ON_A_NODE: Mapping[str, str] = {  # settings without a widget, and why
    "dataset.path": "the dataset socket of Train LoRA brings it from Dataset Prep",
    "dataset.repeats": "set for each dataset in Combine Datasets; the dataset socket brings it",
    "dataset.loss_weight": "set for each dataset in Combine Datasets; the dataset socket brings it",
    "dataset.hash": "the dataset socket of Train LoRA brings it from Dataset Prep",
    "dataset.more": "Combine Datasets makes the list; the dataset socket brings it",
    "training.cuda_graphs": "auto turns itself off where it does not help or work; other values are for measuring",
    "training.fused": "auto turns itself off where its kernels do not work; other values are for measuring",
    "output.runs": "inside ComfyUI, runs lie below its output folder, and no graph may move them",
    "output.wandb": "set in a TOML file: nothing in a graph may send data away",
    "output.publish": "finished files go to ComfyUI's own LoRA folder, where Load LoRA lists them",
}


def left_to_memory_preset(data: dict[str, Any]) -> dict[str, Any]:
    """``data`` without the values that a memory preset may choose, unless they differ from the default.

    A widget always has a value; only one that was changed expresses a wish.
    """
    if data.get("training", {}).get("memory", "none") == "none":
        return data
    for key in PRESET_KEYS:
        section, _, name = key.partition(".")
        table = data.get(section, {})
        if table.get(name) == settings_of(RunConfig)[key].default:
            table.pop(name, None)
    return data


def by_widget(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Values by key of the configuration as values by widget: node id -> widget -> value."""
    tables = {node.id: {widget.name: values[widget.key] for widget in node.widgets if widget.key in values} for node in NODES}
    return {node: table for node, table in tables.items() if table}
