"""Train LoRA: a dataset and a checkpoint become a LoRA file, with live progress on the canvas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.model_management
from comfy import cli_args
from comfy_api.latest import io

from ..trainer.config import presets
from ..trainer.config.run_config import RunConfig, parse
from ..trainer.core.counting import plural
from ..trainer.core.files.paths import safe_name
from ..trainer.core.work.progress import send_progress_to
from ..trainer.runs.event_log import read_events
from .shared import written_files
from .shared.browser import show_progress
from .shared.failures import canvas_errors, failures_reported
from .shared.files.base_models import base_model_names, base_model_path, base_model_stamp, default_base_model, found_parts
from .shared.files.folders import loras_dir, runs_dir
from .shared.files.images import batch, load_rgb
from .shared.inputs.socket_types import DATASET, LORA, TRAIN_OPTIONS, LoraHandle, TrainOptions, dataset_from_socket, options_from_socket
from .shared.schema import field, inputs, result, schema
from .shared.training_view import TrainingView, format_duration, run_notes
from .shared.widgets.training_widgets import TRAIN_LORA_WIDGETS, left_to_memory_preset
from .shared.widgets.widget import merged
from .shared.workflow_metadata import take_property

_START_OVER = "animelora_start_over"  # the property of a node in a queued workflow whose user chose to start over


class TrainLora(io.ComfyNode):
    """Schema and call of Train LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help; the defaults are the reference run's."""
        return schema(
            TRAIN_LORA_WIDGETS.node,
            TRAIN_LORA_WIDGETS.title,
            "Trains a LoRA on your dataset and puts the finished file in models/loras. "
            "A finished run is found again instead of repeated; a cancelled one resumes where it stopped; with more epochs, it continues.",
            inputs(
                TRAIN_LORA_WIDGETS,
                {"checkpoint": default_base_model()},
                dataset=field(DATASET, "dataset", "The images to learn from: the dataset output of Dataset Prep."),
                checkpoint=base_model_names(),
                options=field(
                    TRAIN_OPTIONS,
                    "options",
                    "Settings of the options nodes: optimizer, noise, loss, memory and more (from Train Options and others).",
                    optional=True,
                ),
                preset=field(
                    io.Combo,
                    "preset",
                    "Fills in good values for what you want to teach and for your kind of model. You can change any of them afterwards.",
                    options=[presets.NONE, *presets.names()],
                    default=presets.NONE,
                    optional=True,
                ),
            ),
            [
                result(LORA, "lora", "The trained LoRA, for Load LoRA."),
                result(io.Image, "samples", "The validation images, from before training to the last epoch."),
                result(io.Image, "loss_curve", "How the loss fell during training."),
            ],
            search=["train lora", "lora training", "kohya", "fine-tune", "dreambooth"],
            is_output_node=True,
            knows_graph=True,
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str = "", name: str | None = None, **_: Any) -> str:
        """Changes when the checkpoint is replaced or the finished LoRA deleted. The launcher then finds the finished run and publishes its
        LoRA again."""
        return f"{base_model_stamp(checkpoint)} {written_files.files_fingerprint(TRAIN_LORA_WIDGETS.node, name)}"

    @classmethod
    def configuration(cls, dataset: dict[str, Any], widgets: dict[str, Any], options: TrainOptions | None) -> RunConfig:
        """The run configuration with these values. Raises UserError for invalid ones."""
        return run_config(dataset, widgets, options)

    @classmethod
    def execute(cls, dataset: Any, options: TrainOptions | None = None, **widgets: Any) -> io.NodeOutput:
        """Train, or find the finished run."""
        with canvas_errors(), failures_reported(cls.hidden.unique_id, _queued_settings(cls.hidden)):
            node_id = cls.hidden.unique_id
            prepared = dataset_from_socket(dataset)
            config = run_config(prepared.section(), widgets, options_from_socket(options, TrainOptions))
            graph = _graph(cls.hidden)
            from_scratch = bool(take_property((cls.hidden.extra_pnginfo or {}).get("workflow"), node_id or "", _START_OVER))
            run = _train(config, widgets.get("preset", presets.NONE), node_id, graph, _queued_settings(cls.hidden), from_scratch)
            written_files.record_file(TRAIN_LORA_WIDGETS.node, widgets["name"], run.lora)
            lora = LoraHandle(str(run.lora), run.lora_sha256, prepared.trigger_words(), str(run.run_dir))
            curve = load_rgb(run.loss_curve)
            samples = [load_rgb(sample.path) for sample in run.samples if sample.path.is_file()] or [curve]
            return io.NodeOutput(lora, batch(samples), batch([curve]))


def run_config(dataset: dict[str, Any], widgets: dict[str, Any], options: TrainOptions | None = None) -> RunConfig:
    """The run configuration from the node's widgets and options. Raises UserError for invalid values.

    The node's own widgets win over the options; settings in neither keep their default.
    """
    extra = json.loads(options.settings) if options is not None else {}
    whole = presets.expanded(merged(extra, _own_sections(dataset, widgets)))  # first, as it may choose a memory preset
    return parse(left_to_memory_preset(_with_parts(whole)))


def _with_parts(data: dict[str, Any]) -> dict[str, Any]:
    """``data`` with the text encoder and the VAE of a model that lies in several files, where none are chosen."""
    base = data["base"]
    if base.get("text_encoder") and base.get("vae"):
        return data
    found = {name: str(path) for name, path in found_parts(Path(base["checkpoint"])).items()}
    return {**data, "base": {**base, **{name: path for name, path in found.items() if not base.get(name)}}}


def _own_sections(dataset: dict[str, Any], widgets: dict[str, Any]) -> dict[str, Any]:
    """The sections of the run configuration that Train LoRA's own inputs set."""
    values = {**widgets, "name": safe_name(widgets["name"]), "checkpoint": str(base_model_path(widgets["checkpoint"]))}
    fixed = {"dataset": dataset, "output": {"runs": str(runs_dir()), "publish": str(loras_dir())}}
    preset = {presets.KEY: widgets["preset"]} if "preset" in widgets else {}
    return merged({**TRAIN_LORA_WIDGETS.settings(values), **preset}, fixed)


def _train(config: RunConfig, preset: str, node_id: str | None, graph: dict[str, Any], settings: dict[str, Any], from_scratch: bool) -> Any:
    """Run the launcher, which is imported here because no other node needs its libraries.

    Refuses a preset for another kind of model: its learning rate would be wrong by a factor of two, which is noticed only hours later.
    """
    from ..trainer.launch.launcher import train
    from ..trainer.launch.outlook import outlook, starts_new
    from ..trainer.launch.prepared_run import prepare_run

    with send_progress_to(show_progress(node_id)):
        run = prepare_run(config)
        if preset != presets.NONE:
            presets.require_model(preset, run.family.preset_group)
        with TrainingView(node_id, run.folder.path.name, config.name, graph, settings) as view:
            view.announce((starts_new(run.steps) if from_scratch else outlook(run)).message)
            trained = train(
                run,
                on_event=view.on_event,
                should_stop=view.should_stop,
                before_start=_free_memory,
                from_scratch=from_scratch,
                controls=view.controls,
            )
            view.reused, view.summary = trained.reused, _summary(trained)
            return trained


def _queued_settings(hidden: Any) -> dict[str, Any]:
    """The node's widget values as they were queued; links are left out."""
    inputs = (hidden.prompt or {}).get(hidden.unique_id, {}).get("inputs", {})
    return {name: value for name, value in inputs.items() if not isinstance(value, list)}


def _graph(hidden: Any) -> dict[str, Any]:
    """Prompt and workflow, as ComfyUI's Save Image stores them; empty if the user disabled metadata."""
    if cli_args.args.disable_metadata:
        return {}
    return ({"prompt": hidden.prompt} if hidden.prompt is not None else {}) | dict(hidden.extra_pnginfo or {})


def _free_memory() -> None:
    """Unload ComfyUI's models: the child needs the GPU. Not called for a finished run."""
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


def _summary(run: Any) -> str:
    how = "found a finished run" if run.reused else f"trained in {format_duration(run.seconds)}"
    summary = f"{how}: {plural(run.steps, 'step')}, loss {run.loss:.4f}\n{run.lora.name}"
    return "\n".join([summary, *run_notes(read_events(run.run_dir / "events.jsonl"))])
