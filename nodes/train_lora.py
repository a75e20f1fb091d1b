"""Train LoRA: a dataset and a checkpoint become a LoRA file, with live progress on the canvas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.model_management
from comfy import cli_args
from comfy_api.latest import io

from ..trainer.config import presets
from ..trainer.config.run_config import PRECISIONS, SCHEDULES, TARGETS, RunConfig, parse
from ..trainer.core.counting import plural
from ..trainer.core.files.paths import safe_name
from ..trainer.core.files.reading import file_stamp
from ..trainer.core.work.progress import reported_to
from ..trainer.runs import events
from ..trainer.runs.run_folder import read_events_of
from .shared import places, written
from .shared.failures import readable
from .shared.folders import checkpoint_names, checkpoint_path, loras_dir, runs_dir
from .shared.images import batch, load_rgb
from .shared.live import TrainingView, duration, say, work_text
from .shared.prompts import lines
from .shared.schema import field, number, result, schema, setting
from .shared.types import DATASET, LORA, TRAIN_OPTIONS, Lora, TrainOptions, as_dataset, as_options
from .shared.wording import on_canvas

_NODE = "TrainLora"


class TrainLora(io.ComfyNode):
    """Schema and call of Train LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and help; the defaults are the reference run's."""
        return schema(
            _NODE,
            "Train LoRA",
            "Trains a LoRA on your dataset and puts the finished file in models/loras. "
            "A run that is already finished is found again and not repeated; a cancelled one goes on where it stopped.",
            [
                field(DATASET, "dataset", "The pictures to learn from: the dataset output of Dataset Prep."),
                field(
                    io.Combo,
                    "checkpoint",
                    "The model to train on. The LoRA works best with this model and its relatives.",
                    options=checkpoint_names(),
                ),
                field(io.String, "name", "The name of the LoRA file.", default="my_anime_style"),
                setting(io.Int, "epochs", "How many times all pictures are gone through.", default=5, min=1, max=10_000),
                setting(
                    io.Int,
                    "rank",
                    "How much the LoRA can hold. 16 is enough for a style; a larger file is rarely a better one.",
                    default=16,
                    min=1,
                    max=1024,
                ),
                number(
                    "learning_rate",
                    "How big the learning steps are. Lower it when results look burnt, raise it when the style does not show. "
                    "0 lets the trainer choose for your model.",
                    default=1e-4,
                    min=0.0,
                    max=1.0,
                    step=1e-6,
                ),
                setting(io.Int, "batch_size", "Pictures per step. More needs more graphics memory.", default=1, min=1, max=256),
                setting(
                    io.Int,
                    "gradient_accumulation",
                    "Adds up this many steps before learning from them: like a larger batch, without the memory.",
                    default=2,
                    min=1,
                    max=256,
                ),
                setting(
                    io.String,
                    "validation_prompts",
                    "A test picture is made for each line before training and after every epoch, so that you see it learn.",
                    default="myAnimeStyleToken anime_face girl, high quality",
                    multiline=True,
                ),
                setting(
                    io.Int,
                    "checkpoint_every",
                    "Saves the state of training every so many steps, to go on from after a stop. 0 saves only at the end.",
                    default=500,
                    min=0,
                    max=1_000_000,
                ),
                setting(
                    io.Int,
                    "training_seed",
                    "The dice of this run: the same number gives the same LoRA.",
                    display_name="seed",
                    default=42,
                    min=0,
                    max=0xFFFF_FFFF,
                    control_after_generate=False,
                ),
                setting(
                    io.Combo,
                    "precision",
                    "Number format of the calculation. auto picks what is fastest and safe on your hardware.",
                    options=list(PRECISIONS),
                    default=PRECISIONS[0],
                    advanced=True,
                ),
                setting(
                    io.Float,
                    "alpha",
                    "Scales what the LoRA learns by alpha / rank. The same as rank means a scale of 1.",
                    default=16.0,
                    min=0.01,
                    max=4096.0,
                    step=0.5,
                    advanced=True,
                ),
                setting(
                    io.Combo,
                    "targets",
                    "Which parts of the model learn: everything that kohya trains; the attention layers only (a smaller file); "
                    "or the convolutions too (a larger one).",
                    options=list(TARGETS),
                    default=TARGETS[0],
                    advanced=True,
                ),
                setting(
                    io.Combo,
                    "schedule",
                    "How the learning rate changes over the run.",
                    options=list(SCHEDULES),
                    default=SCHEDULES[0],
                    advanced=True,
                ),
                setting(
                    io.Int,
                    "warmup_steps",
                    "Steps in which the learning rate rises from zero, for a gentle start.",
                    default=0,
                    min=0,
                    max=100_000,
                    advanced=True,
                ),
                setting(
                    io.Int,
                    "max_steps",
                    "Ends the run after this many steps, whatever the epochs say. 0 means no limit.",
                    default=0,
                    min=0,
                    max=1_000_000,
                    advanced=True,
                ),
                setting(
                    io.Boolean,
                    "gradient_checkpointing",
                    "Needs much less graphics memory and is about a fifth slower. Switch it on when memory runs out.",
                    default=False,
                    advanced=True,
                ),
                setting(
                    io.Int,
                    "validation_steps",
                    "Sampling steps of each test picture.",
                    default=20,
                    min=1,
                    max=200,
                    advanced=True,
                ),
                setting(
                    io.Float,
                    "validation_guidance",
                    "How closely the test pictures follow their prompt.",
                    default=7.5,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    advanced=True,
                ),
                setting(
                    io.Int,
                    "validate_every",
                    "Test pictures are made after every so many epochs. 0 makes none.",
                    default=1,
                    min=0,
                    max=10_000,
                    advanced=True,
                ),
                field(
                    TRAIN_OPTIONS,
                    "options",
                    "Optimizer, noise and loss settings for people who know them (from Train Options).",
                    optional=True,
                ),
                # added later: at the end, so that graphs saved before them still load
                setting(
                    io.Combo,
                    "preset",
                    "Fills in good values for what you want to teach and for your kind of model. Change any of them afterwards.",
                    options=[presets.NONE, *presets.names()],
                    default=presets.NONE,
                ),
            ],
            [
                result(LORA, "lora", "The trained LoRA, for Load LoRA."),
                result(io.Image, "samples", "The test pictures, from before training to the last epoch."),
                result(io.Image, "loss_curve", "How the error fell during training."),
            ],
            search=["train lora", "lora training", "kohya", "fine-tune", "dreambooth"],
            is_output_node=True,
            knows_graph=True,
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str = "", name: str | None = None, **_: Any) -> str:
        """Changes when the checkpoint file is replaced, or the finished LoRA deleted. A finished run is found by the launcher, whatever
        this says, and its LoRA published again."""
        return f"{file_stamp(checkpoint_path(checkpoint))} {written.mark(_NODE, name)}"

    @classmethod
    def execute(cls, dataset: Any, options: TrainOptions | None = None, **widgets: Any) -> io.NodeOutput:
        """Train, or find the finished run."""
        with readable():
            node_id = cls.hidden.unique_id
            prepared = as_dataset(dataset)
            config = run_config(prepared.section(), widgets, as_options(options, TrainOptions))
            run = _train(config, widgets.get("preset", presets.NONE), node_id, _graph(cls.hidden))
            written.remember(_NODE, widgets["name"], run.lora)
            say(node_id, _summary(run))
            lora = Lora(str(run.lora), run.lora_sha256, prepared.trigger_words(), str(run.run_dir))
            curve = load_rgb(run.loss_curve)
            samples = [load_rgb(sample.path) for sample in run.samples if sample.path.is_file()] or [curve]
            return io.NodeOutput(lora, batch(samples), batch([curve]))


def run_config(dataset: dict[str, Any], widgets: dict[str, Any], options: TrainOptions | None = None) -> RunConfig:
    """The run configuration that the node's widgets and options describe. Raises UserError for a value out of range.

    The node's own widgets win over the options; what neither says has the trainer's default.
    """
    extra = json.loads(options.settings) if options is not None else {}
    whole = presets.expanded(places.merged(extra, _own_sections(dataset, widgets)))  # may choose a memory preset, so it comes first
    return parse(places.left_to_memory_preset(whole))


def _own_sections(dataset: dict[str, Any], widgets: dict[str, Any]) -> dict[str, Any]:
    """What Train LoRA's own widgets say, in the sections of the run configuration."""
    values = {
        **widgets,
        **({"learning_rate": "auto"} if widgets.get("learning_rate") == 0 else {}),
        "name": safe_name(widgets["name"]),
        "checkpoint": str(checkpoint_path(widgets["checkpoint"])),
        "validation_prompts": lines(widgets.get("validation_prompts", "")),
    }
    fixed = {"dataset": dataset, "output": {"runs": str(runs_dir()), "publish": str(loras_dir())}}
    return places.merged(places.sections(places.TRAIN_LORA, values), fixed)


def _train(config: RunConfig, preset: str, node_id: str | None, graph: dict[str, Any]) -> Any:
    """Run the launcher. Imported late: it brings in libraries that no other node needs.

    Refuses a preset for another kind of model: its rate would be wrong by half, and nobody would notice for hours.
    """
    from ..trainer.launch.launcher import train
    from ..trainer.launch.prepared_run import prepare_run

    with reported_to(work_text(node_id)):
        run = prepare_run(config)
        if preset != presets.NONE:
            presets.require_model(preset, run.family.preset_group)
        with TrainingView(node_id, run.folder.path.name, config.name, graph) as view:
            return train(run, on_event=view.on_event, should_stop=view.should_stop, before_start=_free_memory)


def _graph(hidden: Any) -> dict[str, Any]:
    """Prompt and workflow, as ComfyUI's Save Image keeps them; nothing when the user forbade that."""
    if cli_args.args.disable_metadata:
        return {}
    return ({"prompt": hidden.prompt} if hidden.prompt is not None else {}) | dict(hidden.extra_pnginfo or {})


def _free_memory() -> None:
    """The child needs the GPU; a run that is only found again leaves ComfyUI's models where they are."""
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


def _summary(run: Any) -> str:
    how = "found a finished run" if run.reused else f"trained in {duration(run.seconds)}"
    said = f"{how}: {plural(run.steps, 'step')}, loss {run.loss:.4f}\n{run.lora.name}"
    return "\n".join([said, *_remarks(run.run_dir)])


def _remarks(run_dir: Path) -> list[str]:
    """What the run said about itself that its user should know, each once, in the words of the canvas."""
    log = run_dir / "events.jsonl"
    remarks = [plan.regularisation for plan in read_events_of(log, events.Plan) if plan.regularisation]
    remarks += [f"Warning: {warning.message}" for warning in read_events_of(log, events.Warning_)]
    return list(dict.fromkeys(on_canvas(remark) for remark in remarks))
