"""The nodes as the browser sees them: names, sockets, help, and defaults that are the trainer's own."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from trainer.config import RunConfig

ROOT = Path(__file__).resolve().parents[2]
NODES = {
    "AnimeLoRA_DatasetPrep": ("Dataset Prep (AnimeLoRA)", ["DATASET", "IMAGE", "STRING"]),
    "AnimeLoRA_TrainLora": ("Train LoRA (AnimeLoRA)", ["LORA", "IMAGE", "IMAGE"]),
    "AnimeLoRA_LoadLora": ("Load LoRA (AnimeLoRA)", ["MODEL", "CLIP", "STRING"]),
    "AnimeLoRA_AnimeImg2Img": ("Anime Img2Img (AnimeLoRA)", ["IMAGE", "IMAGE"]),
    "AnimeLoRA_StyleCompare": ("Style Compare (AnimeLoRA)", ["IMAGE", "IMAGE"]),
    "AnimeLoRA_EpochCompare": ("Epoch Compare (AnimeLoRA)", ["IMAGE", "IMAGE"]),
    "AnimeLoRA_PickEpoch": ("Pick Epoch (AnimeLoRA)", ["LORA", "STRING"]),
    "AnimeLoRA_ExportLora": ("Export LoRA (AnimeLoRA)", ["LORA", "STRING"]),
    "AnimeLoRA_DemoPictures": ("Demo Pictures (AnimeLoRA)", ["IMAGE", "STRING"]),
    "AnimeLoRA_DatasetOptions": ("Dataset Options (AnimeLoRA)", ["ANIMELORA_DATASET_OPTIONS"]),
    "AnimeLoRA_TrainOptions": ("Train Options (AnimeLoRA)", ["ANIMELORA_TRAIN_OPTIONS"]),
    "AnimeLoRA_LoadDemoBase": ("Load Demo Base (AnimeLoRA)", ["MODEL", "CLIP", "VAE"]),
}
OPTIONS = {"ANIMELORA_DATASET_OPTIONS", "ANIMELORA_TRAIN_OPTIONS"}  # plain data, each for one socket of ours
SOCKETS = {"MODEL", "CLIP", "VAE", "IMAGE", "CONTROL_NET", "UPSCALE_MODEL", "STRING", "DATASET", "LORA"}
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
# widget of Train LoRA -> key of the run configuration whose default it must show
TRAINING = {
    "epochs": "training.epochs",
    "rank": "network.rank",
    "alpha": "network.alpha",
    "targets": "network.targets",
    "learning_rate": "optimizer.lr",
    "schedule": "optimizer.schedule",
    "warmup_steps": "optimizer.warmup_steps",
    "batch_size": "training.batch_size",
    "gradient_accumulation": "training.gradient_accumulation",
    "checkpoint_every": "training.checkpoint_every",
    "max_steps": "training.max_steps",
    "precision": "training.precision",
    "gradient_checkpointing": "training.gradient_checkpointing",
    "training_seed": "training.seed",
    "validation_steps": "sample.steps",
    "validation_guidance": "sample.guidance",
    "validate_every": "sample.every_epochs",
}


OPTIONAL = {
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
}


def inputs(info: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Every input of a node: name -> (type, options)."""
    return {name: (spec[0], spec[1]) for group in ("required", "optional") for name, spec in info["input"].get(group, {}).items()}


def test_the_pack_loads_with_these_nodes(description: dict[str, Any]) -> None:
    assert description["loaded"] is True
    shown = {name: (info["display_name"], info["output"]) for name, info in description["nodes"].items()}
    assert NODES.items() <= shown.items()


def test_every_node_is_in_our_category_and_says_what_it_does(description: dict[str, Any]) -> None:
    for name, info in description["nodes"].items():
        assert info["category"] == "AnimeLoRA", name
        assert info["display_name"].endswith("(AnimeLoRA)"), name
        assert len(info["description"]) > 40, name


def test_every_input_and_output_has_help_that_is_a_sentence(description: dict[str, Any]) -> None:
    for name, info in description["nodes"].items():
        for key, (_, options) in inputs(info).items():
            assert len(options.get("tooltip", "")) > 15, f"{name}.{key}"
            assert options["tooltip"].endswith("."), f"{name}.{key}"
        assert all(len(text or "") > 15 for text in info["output_tooltips"]), name
        assert len(set(info["output_name"])) == len(info["output_name"]), name


def test_sockets_are_comfyui_types_or_our_own(description: dict[str, Any]) -> None:
    for name, info in description["nodes"].items():
        for key, (kind, _) in inputs(info).items():
            assert isinstance(kind, list) or kind in SOCKETS | WIDGETS | OPTIONS, f"{name}.{key}: {kind}"


def test_defaults_of_training_are_those_of_the_run_configuration(description: dict[str, Any]) -> None:
    reference = RunConfig.model_validate({"base": {"checkpoint": "x"}, "dataset": {"path": "x"}}).model_dump()
    for node, table in (("AnimeLoRA_TrainLora", TRAINING), ("AnimeLoRA_TrainOptions", OPTIONAL)):
        widgets = inputs(description["nodes"][node])
        for widget, key in table.items():
            section, name = key.split(".")
            assert widgets[widget][1]["default"] == reference[section][name], widget
    assert set(inputs(description["nodes"]["AnimeLoRA_TrainOptions"])) == set(OPTIONAL)


def test_defaults_of_training_are_the_reference_run(description: dict[str, Any]) -> None:
    widgets = {name: options.get("default") for name, (_, options) in inputs(description["nodes"]["AnimeLoRA_TrainLora"]).items()}
    expected = {
        "rank": 16,
        "learning_rate": 1e-4,
        "epochs": 5,
        "batch_size": 1,
        "gradient_accumulation": 2,
        "checkpoint_every": 500,
        "validation_prompts": "myAnimeStyleToken anime_face girl, high quality",
    }
    assert {name: widgets[name] for name in expected} == expected


def test_the_training_seed_is_not_rolled_with_every_queue(description: dict[str, Any]) -> None:
    _, options = inputs(description["nodes"]["AnimeLoRA_TrainLora"])["training_seed"]
    assert options["control_after_generate"] is False


def test_numbers_have_bounds_that_hold_their_default(description: dict[str, Any]) -> None:
    for name, info in description["nodes"].items():
        for key, (kind, options) in inputs(info).items():
            if kind in ("INT", "FLOAT"):
                assert options["min"] <= options["default"] <= options["max"], f"{name}.{key}"


def test_menus_are_never_empty_and_hold_their_default(description: dict[str, Any]) -> None:
    for name, info in description["nodes"].items():
        for key, (kind, options) in inputs(info).items():
            choices = kind if isinstance(kind, list) else options.get("options") if kind == "COMBO" else None
            if choices is not None:
                assert choices, f"{name}.{key}"
                assert options.get("default", choices[0]) in choices, f"{name}.{key}"


def test_the_folder_menu_shows_folders_below_input(description: dict[str, Any]) -> None:
    kind, options = inputs(description["nodes"]["AnimeLoRA_DatasetPrep"])["folder"]
    assert (kind if isinstance(kind, list) else options["options"]) == ["(images input)", "first", "first/second"]


def test_nothing_on_a_node_reaches_an_executable_or_an_argument_list(description: dict[str, Any]) -> None:
    forbidden = {"exec", "executable", "command", "args", "arguments", "python", "shell", "script", "env", "path"}
    for name, info in description["nodes"].items():
        for key in inputs(info):
            assert not set(key.split("_")) & forbidden, f"{name}.{key}"


def test_loading_the_pack_stays_light(description: dict[str, Any]) -> None:
    """The trainer's heavy libraries belong to the child; ComfyUI's start must not wait for them."""
    heavy = {"diffusers", "peft", "accelerate", "matplotlib", "tensorboard", "bitsandbytes", "xformers"}
    assert not heavy & {name.split(".")[0] for name in description["modules"]}


def test_nodes_keep_no_state(description: dict[str, Any]) -> None:
    assert description["stateful"] == []


@pytest.mark.parametrize("folder", ["trainer", "demo", "run.py"])
def test_only_the_nodes_import_comfyui(folder: str) -> None:
    place = ROOT / folder
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    assert files
    for file in files:
        for statement in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in statement.names] if isinstance(statement, ast.Import) else []
            if isinstance(statement, ast.ImportFrom) and statement.level == 0:
                names = [statement.module or ""]
            roots = {name.split(".")[0] for name in names}
            assert not roots & {"comfy", "comfy_api", "comfy_execution", "folder_paths", "nodes", "server"}, f"{file}: {names}"
