"""``python -m trainer demo``: from images to a trained LoRA and a comparison, on the embedded base model."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command's parser."""
    parser = subparsers.add_parser(
        "demo",
        help="train and use a LoRA on the embedded base model, without a download",
        description="Draw anime portraits, prepare them, train a LoRA on the small model that comes with the pack, export it, turn photos "
        "that it never saw into anime, and compare them with the ideal result: grid.png, loss_curve.png, figures.json and the LoRA file.",
    )
    parser.add_argument("--out", type=Path, default=Path("demo-output"), metavar="DIR", help="folder for the results (demo-output)")
    parser.add_argument("--quick", action="store_true", help="train for a shorter time on fewer portraits, to see that everything works")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo and print where the results are."""
    from demo.run_demo import QUICK, main

    out = args.out.resolve()
    figures = main(out, QUICK if args.quick else None, progress=lambda line: print(line, file=sys.stderr, flush=True))
    if args.json:
        print(json.dumps(figures))
        return 0
    for name, value in figures.items():
        if isinstance(value, (int, float)) and name in figures.get("meaning", {}):
            print(f"{name:>22} {value:>9.3f}  {figures['meaning'][name]}")
    print(f"Results: {out}")
    return 0
