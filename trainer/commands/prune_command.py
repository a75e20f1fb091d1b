"""``python -m trainer prune``: delete what finished runs no longer need."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..core.counting import plural


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command's parser."""
    parser = subparsers.add_parser(
        "prune",
        help="delete saved states of finished runs and old caches, never a LoRA",
        description=(
            "Delete files without losing a result: the saved states of finished runs, and cached latents and prompts that are older "
            "than some days. LoRA files, images, logs, unfinished runs and runs in training stay."
        ),
    )
    parser.add_argument("runs", type=Path, help="the folder that holds the run folders, for example output/animelora/runs")
    parser.add_argument("--days", type=_days, default=30.0, help="how old a cache file must be (default: 30)")
    parser.add_argument("--dry-run", action="store_true", help="only print what would be deleted")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prune, and print what was freed."""
    from ..runs.pruning import prune

    done = prune(args.runs, days=args.days, dry_run=args.dry_run)
    word = "would free" if args.dry_run else "freed"
    print(f"{word} {done.bytes / 1e6:.1f} MB: {plural(done.states, 'state')} of finished runs, {plural(done.cached, 'cached file')}")
    return 0


def _days(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return value
