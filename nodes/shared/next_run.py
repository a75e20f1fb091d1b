"""What Train LoRA will do with the settings on the canvas: start, resume, continue an earlier run, or use the finished LoRA; how much it
needs, and why it would fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...trainer.config import presets, run_config
from ...trainer.core.errors import UserError
from ...trainer.core.files.reading import file_stamp
from ...trainer.runs.run_folder import RunFolder
from .before_run.fixes import error_problem, problem
from .before_run.graph_inputs import Graph, Nodes, dataset_of, is_link, options_of
from .failures import AnimeLoRAError
from .wording import on_canvas

_DATASET_KEYS = ("path", "repeats", "loss_weight", "hash", "more")
Answer = Callable[[run_config.RunConfig, str], dict[str, Any]]
_UNKNOWN: dict[str, Any] = {"kind": "unknown"}


def next_run(train: type[Any], nodes: Nodes, graph: Graph, node_id: str, last_run: Path | None) -> dict[str, Any]:
    """What the Train LoRA node ``node_id`` of ``graph`` will do.

    ``train`` is the class of Train LoRA, and ``nodes`` are those by which its settings and its dataset are found: no other node is called.
    The dataset is the one that its Dataset Prep prepared last, else that of ``last_run``, the folder of a run. ``kind`` is ``unknown``
    where it is known only once the graph runs: a widget is linked, there is no dataset yet (``missing``), or the run would be refused.
    ``problems`` are what it would be refused for and what it should be warned of. Not to be called by two threads at once.
    """
    return _answered(train, nodes, graph, node_id, last_run, _forecast, _without_dataset)


def next_outlook(train: type[Any], nodes: Nodes, graph: Graph, node_id: str, last_run: Path | None) -> dict[str, Any]:
    """The same without figures and warnings, which takes less time."""
    return _answered(train, nodes, graph, node_id, last_run, _outlook, lambda config, preset: _UNKNOWN)


def _answered(
    train: type[Any], nodes: Nodes, graph: Graph, node_id: str, last_run: Path | None, with_dataset: Answer, without: Answer
) -> dict[str, Any]:
    try:
        inputs = graph[node_id]["inputs"]
        widgets = {name: value for name, value in inputs.items() if name not in ("dataset", "options")}
        if any(map(is_link, widgets.values())):
            return _UNKNOWN
        options = options_of(nodes, graph, inputs.get("options"))
        handle = dataset_of(nodes, graph, inputs.get("dataset"))
        dataset = _dataset_of_run(last_run) if handle is None else handle.section()
        config = train.configuration(dataset or {"path": "unknown"}, widgets, options)
        return (with_dataset if dataset else without)(config, str(widgets.get("preset", presets.NONE)))
    except UserError as error:
        return {**_UNKNOWN, "problems": [error_problem(error)]}
    except AnimeLoRAError as error:  # of an options node
        return {**_UNKNOWN, "problems": [problem(str(error), refused=True)]}
    except (OSError, KeyError, TypeError, AttributeError, ValueError):
        return _UNKNOWN


def _dataset_of_run(run: Path | None) -> dict[str, Any] | None:
    if run is None:
        return None
    return run_config.load_config(RunFolder(run, "").config).dataset.model_dump(include=set(_DATASET_KEYS))


def _forecast(config: run_config.RunConfig, preset: str) -> dict[str, Any]:
    from ...trainer.launch.forecast import forecast

    checkpoint = config.base.checkpoint
    coming = forecast(
        config, _models(checkpoint, file_stamp(checkpoint)), lambda family: presets.require_model(preset, family.preset_group)
    )
    refused = [] if coming.refusal is None else [error_problem(coming.refusal)]
    plan: Mapping[str, Any] = {
        "dataset": Path(config.dataset.path).name,
        "images": coming.plan.images,
        "epochs": coming.plan.epochs,
        "memory_gb": coming.plan.memory_gb,
        "usable_gb": coming.usable_gb,
        "device": coming.plan.device,
        "seconds": None if coming.time is None else coming.time.seconds,
    }
    return {
        **asdict(coming.outlook),
        "message": on_canvas(coming.outlook.message),
        "why": on_canvas(coming.outlook.why),
        "plan": plan,
        "problems": [*refused, *(problem(caution, refused=False) for caution in coming.cautions)],
    }


def _outlook(config: run_config.RunConfig, preset: str) -> dict[str, Any]:
    from ...trainer.launch.forecast import outlook_of
    from ...trainer.plan.inputs import open_inputs

    inputs = open_inputs(run_config.absolute(config))
    presets.require_model(preset, inputs.family.preset_group)
    coming = outlook_of(inputs)
    return {**asdict(coming), "message": on_canvas(coming.message), "why": on_canvas(coming.why)}


@lru_cache(maxsize=1)
def _models(checkpoint: str, stamp: str) -> Any:
    """The models that were counted for forecasts on this ``checkpoint``; ``stamp`` changes when the file is replaced."""
    from ...trainer.plan.meta_models import MetaModels

    return MetaModels()


def _without_dataset(config: run_config.RunConfig, preset: str) -> dict[str, Any]:
    """What can be said about the settings and the checkpoint alone. Raises UserError for what would be refused."""
    from ...trainer.launch.forecast import checkpoint_cautions

    cautions = checkpoint_cautions(config, lambda family: presets.require_model(preset, family.preset_group))
    return {**_UNKNOWN, "missing": "dataset", "problems": [problem(caution, refused=False) for caution in cautions]}
