"""The nodes as the browser sees them: names, sockets, help, and defaults that are the trainer's own."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, get_args

import pytest
from pydantic import BaseModel, TypeAdapter

from trainer.config import run_config
from trainer.config.prepare_settings import PrepareSettings
from trainer.config.setting import settings_of

Helper = Callable[[str], ModuleType]
ROOT = Path(__file__).resolve().parents[2]
NODES = {
    "AnimeLoRA_DatasetPrep": ("Dataset Prep (AnimeLoRA)", ["DATASET", "IMAGE", "STRING"]),
    "AnimeLoRA_TrainLora": ("Train LoRA (AnimeLoRA)", ["LORA", "IMAGE", "IMAGE"]),
    "AnimeLoRA_LoadLora": ("Load LoRA (AnimeLoRA)", ["MODEL", "CLIP", "STRING"]),
    "AnimeLoRA_LoraStack": ("LoRA Stack (AnimeLoRA)", ["MODEL", "CLIP", "STRING"]),
    "AnimeLoRA_AnimeImg2Img": ("Anime Img2Img (AnimeLoRA)", ["IMAGE", "IMAGE"]),
    "AnimeLoRA_StyleCompare": ("Style Compare (AnimeLoRA)", ["IMAGE", "IMAGE"]),
    "AnimeLoRA_EpochCompare": ("Epoch Compare (AnimeLoRA)", ["IMAGE", "IMAGE"]),
    "AnimeLoRA_PickEpoch": ("Pick Epoch (AnimeLoRA)", ["LORA", "STRING"]),
    "AnimeLoRA_ExportLora": ("Export LoRA (AnimeLoRA)", ["LORA", "STRING"]),
    "AnimeLoRA_DemoPictures": ("Demo Pictures (AnimeLoRA)", ["IMAGE", "STRING"]),
    "AnimeLoRA_DatasetOptions": ("Dataset Options (AnimeLoRA)", ["ANIMELORA_DATASET_OPTIONS"]),
    "AnimeLoRA_TrainOptions": ("Train Options (AnimeLoRA)", ["ANIMELORA_TRAIN_OPTIONS"]),
    "AnimeLoRA_NetworkOptions": ("Network Options (AnimeLoRA)", ["ANIMELORA_TRAIN_OPTIONS"]),
    "AnimeLoRA_LearningOptions": ("Learning Options (AnimeLoRA)", ["ANIMELORA_TRAIN_OPTIONS"]),
    "AnimeLoRA_MachineOptions": ("Machine Options (AnimeLoRA)", ["ANIMELORA_TRAIN_OPTIONS"]),
    "AnimeLoRA_CombineDatasets": ("Combine Datasets (AnimeLoRA)", ["DATASET"]),
    "AnimeLoRA_MonitorOptions": ("Monitor Options (AnimeLoRA)", ["ANIMELORA_TRAIN_OPTIONS"]),
    "AnimeLoRA_LoadDemoBase": ("Load Demo Base (AnimeLoRA)", ["MODEL", "CLIP", "VAE"]),
}
OPTIONS = {"ANIMELORA_DATASET_OPTIONS", "ANIMELORA_TRAIN_OPTIONS"}  # plain data, each for one socket of ours
SOCKETS = {"MODEL", "CLIP", "VAE", "IMAGE", "CONTROL_NET", "UPSCALE_MODEL", "STRING", "DATASET", "LORA"}
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


def inputs(info: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Every input of a node: name -> (type, options)."""
    return {name: (spec[0], spec[1]) for group in ("required", "optional") for name, spec in info["input"].get(group, {}).items()}


def test_the_pack_loads_with_these_nodes(description: dict[str, Any]) -> None:
    assert description["loaded"] is True
    shown = {name: (info["display_name"], info["output"]) for name, info in description["nodes"].items()}
    assert NODES.items() <= shown.items()


def test_every_node_has_our_category_and_a_description(description: dict[str, Any]) -> None:
    for name, info in description["nodes"].items():
        assert info["category"] == "AnimeLoRA", name
        assert info["display_name"].endswith("(AnimeLoRA)"), name
        assert len(info["description"]) > 40, name


def test_every_input_and_output_has_a_tooltip_of_whole_sentences(description: dict[str, Any]) -> None:
    for name, info in description["nodes"].items():
        for key, (_, options) in inputs(info).items():
            assert len(options.get("tooltip", "")) > 15, f"{name}.{key}"
            assert options["tooltip"].endswith("."), f"{name}.{key}"
        assert all(len(text or "") > 15 for text in info["output_tooltips"]), name
        assert len(set(info["output_name"])) == len(info["output_name"]), name


def test_sockets_have_comfyuis_types_or_our_own(description: dict[str, Any]) -> None:
    for name, info in description["nodes"].items():
        for key, (kind, _) in inputs(info).items():
            assert isinstance(kind, list) or kind in SOCKETS | WIDGETS | OPTIONS, f"{name}.{key}: {kind}"


def test_inputs_are_those_of_the_widget_tables_in_their_order(description: dict[str, Any], helper: Helper) -> None:
    for node in [*helper("widgets.training_widgets").NODES, *helper("widgets.dataset_widgets").DATASET_NODES]:
        names = [row if isinstance(row, str) else row.name for row in node.inputs]
        info = description["nodes"][node.id]
        assert info["display_name"] == f"{node.title} (AnimeLoRA)"
        required = [name for name in names if name in info["input"].get("required", {})]
        assert list(inputs(info)) == [*required, *(name for name in names if name not in required)]
        for widget in node.widgets:
            setting = node.setting(widget)
            expected = {name: value for name, value in widget.arguments(setting).items() if name not in ("optional", "options")}
            assert expected.items() <= inputs(info)[widget.name][1].items(), widget.name


def test_limits_of_widgets_lie_inside_those_of_their_settings(description: dict[str, Any], helper: Helper) -> None:
    tried = 0
    for node in [*helper("widgets.training_widgets").NODES, *helper("widgets.dataset_widgets").DATASET_NODES]:
        for widget in node.widgets:
            kind, options = inputs(description["nodes"][node.id])[widget.name]
            if kind not in ("INT", "FLOAT"):
                continue
            setting = node.setting(widget)
            *sections, name = widget.key.split(".")
            place: type[BaseModel] = node.model
            for section in sections:
                annotation = place.model_fields[section].annotation
                place = next(part for part in (annotation, *get_args(annotation)) if isinstance(part, type))
            field = place.model_fields[name]
            limited: Any = Annotated[field.annotation, field]
            accepts = TypeAdapter[Any](limited)
            for bound in (options["min"], options["max"]):
                accepts.validate_python(widget.value(setting, bound))  # raises where the trainer would refuse what the widget allows
                tried += 1
    assert tried > 80


def test_every_setting_of_a_run_is_on_one_node_or_has_a_reason(helper: Helper) -> None:
    training = helper("widgets.training_widgets")
    on_nodes = [widget.key for node in training.NODES for widget in node.widgets]
    assert sorted([*on_nodes, *training.NOT_ON_A_NODE]) == sorted(run_config.keys())
    assert all(len(reason) > 30 for reason in training.NOT_ON_A_NODE.values())


def test_every_setting_of_a_dataset_is_on_one_node_or_has_a_reason(helper: Helper) -> None:
    dataset = helper("widgets.dataset_widgets")
    on_nodes = [widget.key for node in dataset.DATASET_NODES for widget in node.widgets]
    assert sorted([*on_nodes, *dataset.NOT_ON_A_DATASET_NODE]) == sorted(settings_of(PrepareSettings))


def test_options_nodes_can_be_chained_and_have_no_required_input(description: dict[str, Any]) -> None:
    chained = [info for info in description["nodes"].values() if info["output"] == ["ANIMELORA_TRAIN_OPTIONS"]]
    assert len(chained) >= 4
    for info in chained:
        assert info["input"].get("required", {}) == {}
        assert inputs(info)["options"][0] == "ANIMELORA_TRAIN_OPTIONS"


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


def test_training_seed_does_not_change_after_each_run(description: dict[str, Any]) -> None:
    _, options = inputs(description["nodes"]["AnimeLoRA_TrainLora"])["training_seed"]
    assert options["control_after_generate"] is False


def test_default_of_a_number_is_within_its_limits(description: dict[str, Any]) -> None:
    for name, info in description["nodes"].items():
        for key, (kind, options) in inputs(info).items():
            if kind in ("INT", "FLOAT"):
                assert options["min"] <= options["default"] <= options["max"], f"{name}.{key}"


def test_menus_contain_their_default(description: dict[str, Any]) -> None:
    for name, info in description["nodes"].items():
        for key, (kind, options) in inputs(info).items():
            choices = kind if isinstance(kind, list) else options.get("options") if kind == "COMBO" else None
            if choices is not None:
                assert choices, f"{name}.{key}"
                assert options.get("default", choices[0]) in choices, f"{name}.{key}"


def test_folder_menu_lists_folders_below_input(description: dict[str, Any]) -> None:
    kind, options = inputs(description["nodes"]["AnimeLoRA_DatasetPrep"])["folder"]
    assert (kind if isinstance(kind, list) else options["options"]) == ["(images input)", "first", "first/second"]


def test_no_input_names_an_executable_or_arguments(description: dict[str, Any]) -> None:
    forbidden = {"exec", "executable", "command", "args", "arguments", "python", "shell", "script", "env", "path"}
    for name, info in description["nodes"].items():
        for key in inputs(info):
            assert not set(key.split("_")) & forbidden, f"{name}.{key}"


def test_list_of_lora_stack_is_plain_text_outside_our_widget(description: dict[str, Any]) -> None:
    kind, options = inputs(description["nodes"]["AnimeLoRA_LoraStack"])["loras"]
    assert (kind, options["widgetType"], options["default"]) == ("STRING", "ANIMELORA_LORAS", "[]")


def test_loading_the_pack_imports_no_heavy_library(description: dict[str, Any]) -> None:
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
