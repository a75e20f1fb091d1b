"""``python -m trainer train``: train a LoRA from a TOML file, with a live progress bar."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.counting import plural
from .interrupt import interruptible

if TYPE_CHECKING:
    from ..config.run_config import RunConfig
    from ..plan.time_estimate import TimeEstimate
    from ..runs.run_plan import RunPlan

_EXAMPLE = """\
a configuration, here my_style.toml (only base.checkpoint and dataset.path have no default):

  name = "my_style"

  [base]
  checkpoint = "v1-5-pruned-emaonly.safetensors"   # or a diffusers folder, or a hub id

  [dataset]
  path = "datasets/myAnimeStyleToken_anime_face"   # what `prepare` wrote

  [sample]
  prompts = ["myAnimeStyleToken anime_face girl, high quality"]

  [output]
  publish = "ComfyUI/models/loras"                 # the finished file is copied here

then:  python -m trainer train my_style.toml --set network.rank=8 --set network.alpha=8

run the same command again to resume a stopped run (Ctrl+C); a finished run is found, not repeated.
while it trains in a terminal: s saves now, i makes validation images now, e stops after this epoch, p pauses and resumes.
with other epochs, max_steps, sample or checkpoint settings, or another name, the earlier run continues: the first line says from where.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command's parser."""
    parser = subparsers.add_parser(
        "train",
        help="train a LoRA from a TOML configuration",
        description="Train a LoRA from a TOML configuration. Every key is described in docs/training.md.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, metavar="FILE.toml", help="the run's configuration")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override a setting, e.g. optimizer.lr=5e-5"
    )
    parser.add_argument("--preset", metavar="NAME", help="fill in what the file leaves out, e.g. style-sd15; see --presets")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--extend", type=_epochs, metavar="EPOCHS", help="train this many epochs more than the longest finished run of these settings"
    )
    length.add_argument("--from-scratch", action="store_true", help="start at the first step, whatever is saved of these settings")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan (images, buckets, steps, memory, time) and where training would continue, and stop",
    )
    parser.add_argument("--prepare", action="store_true", help="make the run folder for a launcher of your own, print its path and stop")
    parser.add_argument(
        "--accelerate-config", type=Path, metavar="FILE", help="launch with this file of `accelerate config`, e.g. for several machines"
    )
    parser.add_argument("--json", action="store_true", help="print the plan, or every event, as JSON instead of a progress bar")
    parser.add_argument("--keys", action=_ListKeys, help="list every setting with its default and description and stop")
    parser.add_argument("--presets", action=_ListPresets, help="list every preset's values with their reasons and stop")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, or only plan or prepare, and print the path of the LoRA."""
    from ..config import run_config

    preset = [f"preset={args.preset}"] if args.preset else []
    settings = run_config.load_config(args.config, [*preset, *args.overrides])
    from ..launch.outlook import continue_earlier, extended_config, outlook
    from ..launch.prepared_run import prepare_run, write_run_folder

    if args.extend:
        settings = extended_config(prepare_run(settings), args.extend)
    if args.dry_run:
        return _dry_run(settings, as_json=args.json, from_scratch=args.from_scratch)
    from ..launch.launcher import train

    run = prepare_run(settings)
    if args.prepare:
        write_run_folder(run, args.accelerate_config)
        continue_earlier(run)
        print(run.folder.path)
        return 0
    if not args.from_scratch:
        print(outlook(run).message, file=sys.stderr)
    if args.json:
        from ..runs.events import encode_event

        with interruptible() as pressed:
            result = train(
                run,
                on_event=lambda event: print(encode_event(event), flush=True),
                should_stop=pressed,
                accelerate_config=args.accelerate_config,
                from_scratch=args.from_scratch,
            )
    else:
        from queue import SimpleQueue

        from ..core.work.progress import send_progress_to
        from ..runs.controls import Control
        from .keys import LEGEND, TrainingKeys
        from .progress_bar import TrainingProgress

        controls: SimpleQueue[Control] = SimpleQueue()
        with (
            interruptible() as pressed,
            TrainingProgress() as progress,
            send_progress_to(progress.work),
            TrainingKeys(controls) as keys,
        ):
            if keys.active:
                print(LEGEND, file=sys.stderr)
            result = train(
                run,
                on_event=progress.show,
                should_stop=pressed,
                accelerate_config=args.accelerate_config,
                from_scratch=args.from_scratch,
                controls=controls,
            )
    words = "found, already trained" if result.reused else f"trained in {result.seconds:.0f} s"
    print(
        f"LoRA ({words}): {result.lora}\nloss curve: {result.loss_curve}\nrun folder: {result.run_dir}",
        file=sys.stderr if args.json else sys.stdout,
    )
    return 0


def _epochs(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("expected a number of epochs from 1 on")
    return int(text)


def _dry_run(settings: RunConfig, *, as_json: bool, from_scratch: bool) -> int:
    from ..adapters.frozen_lora import describe_frozen, frozen_modules
    from ..adapters.start_from import require_lora
    from ..compute.attention_choice import choose_attention
    from ..config.run_config import absolute
    from ..core.devices import pick_device, pick_precision, torch_dtype
    from ..launch.forecast import all_cautions, outlook_of
    from ..launch.outlook import starts_new
    from ..plan.inputs import open_inputs
    from ..plan.planning import make_plan
    from ..plan.time_estimate import estimate_time

    inputs = open_inputs(absolute(settings))
    settings, checkpoint = inputs.config, inputs.checkpoint
    if settings.base.lora:
        require_lora(Path(settings.base.lora))
    device = pick_device(settings.training.device)
    precision = pick_precision(settings.training.precision, device)
    attention, _ = choose_attention(settings.training.attention, device, torch_dtype(precision))
    plan = make_plan(settings, inputs.dataset, inputs.family, checkpoint, device, precision, attention)
    plan = replace(plan, held_out=len(inputs.held_out.items), regularisation=inputs.regularisation)
    for caution in filter(None, [*all_cautions(inputs), describe_frozen(settings, frozen_modules(settings))]):
        print(f"warning: {caution}", file=sys.stderr)
    coming = starts_new(plan.steps) if from_scratch else outlook_of(inputs)
    time = estimate_time(settings, plan, coming.step)
    if as_json:
        seconds = None if time is None else time.seconds
        print(json.dumps({**asdict(plan), "outlook": asdict(coming), "seconds": seconds}, indent=2))
    else:
        _print_plan(plan, settings, inputs.dataset.name, checkpoint.name, _in_words(time))
        print(coming.message)
    return 0


def _in_words(time: TimeEstimate | None) -> str:
    if time is None:
        return "unknown until a run on this base has been trained here"
    minutes, seconds = divmod(round(time.seconds), 60)
    length = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    return f"about {length}, going by {time.run}"


def _print_plan(plan: RunPlan, settings: RunConfig, dataset: str, base: str, time: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    training, network = settings.training, settings.network
    swapped = min(training.swap_blocks, plan.swappable_blocks)
    passes = training.micro_batch_size or training.batch_size
    notes = {
        "base": f" in {plan.precision if training.base_precision == 'same' else training.base_precision}"
        + (", packed for the CPU" if plan.prepacked else "")
        + (f", {plural(swapped, 'block')} swapped" if swapped else ""),
        "optimizer": f" for {settings.optimizer.name}",
        "activations": f", {min(passes, training.batch_size)} at a time"
        + (", checkpointed" if training.gradient_checkpointing else "")
        + (", in CUDA graphs" if plan.cuda_graphs else "")
        + (", fused blocks" if plan.fused else ""),
    }
    table = Table(title=Text(f"Plan of {settings.name}"), show_header=False)
    rows = [
        ("base", f"{base} ({plan.family}, {plan.prediction})"),
        *([("text encoder", plan.text_encoder)] if plan.text_encoder else []),
        *([("VAE", plan.vae)] if plan.vae else []),
        *([("latents", plan.latents)] if plan.latents else []),
        ("dataset", f"{dataset}: {plural(plan.images, 'image')}, {sum(plan.buckets.values())} with repeats"),
        *([("regularisation", plan.regularisation)] if plan.regularisation else []),
        *([("validation", f"{plan.held_out} more images, not trained on")] if plan.held_out else []),
        ("buckets", ", ".join(f"{size}: {count}" for size, count in plan.buckets.items())),
        ("steps", f"{plan.steps} = {plural(plan.epochs, 'epoch')} × {plan.steps_per_epoch}"),
        ("batch", f"{training.batch_size} × {training.gradient_accumulation} accumulated"),
        ("LoRA", f"rank {network.rank}, alpha {network.alpha:g}, {plural(plan.modules, 'module')} ({network.targets})"),
        ("trainable", f"{plan.trainable_parameters:,} parameters"),
        ("device", f"{plan.device}, {plan.precision}"),
        ("attention", plan.attention),
        ("time", time),
        ("memory", f"about {plan.memory_gb:.1f} GB while training"),
        *((f"  {name}", f"{value:.2f} GB{notes.get(name, '')}") for name, value in plan.memory.items()),
    ]
    for name, value in rows:
        table.add_row(name, Text(value))
    Console().print(table)


class _ListPresets(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, **kwargs: object) -> None:
        super().__init__(option_strings, dest, nargs=0, help=str(kwargs.get("help", "")))

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from ..config.presets import table

        print(table())
        parser.exit()


class _ListKeys(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, **kwargs: object) -> None:
        super().__init__(option_strings, dest, nargs=0, help=str(kwargs.get("help", "")))

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from ..config.reference import settings_list
        from ..config.run_config import RunConfig

        print("\n".join(settings_list(RunConfig)))
        parser.exit()
