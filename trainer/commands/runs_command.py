"""``python -m trainer runs``: list the runs in a folder."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.counting import plural

if TYPE_CHECKING:
    from ..runs.run_list import ListedRun


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command's parser."""
    parser = subparsers.add_parser(
        "runs",
        help="list runs: how each ended, steps, loss, size on disk, base checkpoint",
        description="List the runs in a folder, the newest first. Damaged ones are listed with what is known.",
    )
    parser.add_argument("runs", type=Path, help="the folder that holds the run folders, for example output/animelora/runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the list."""
    from ..core.errors import UserError
    from ..runs.run_list import RunList, disk_size

    if not args.runs.is_dir():
        raise UserError(f"The folder {args.runs} does not exist.", "Choose the folder that holds the run folders.", kind="path")
    listed = RunList(args.runs).all()
    size = disk_size(listed)
    if args.json:
        print(json.dumps({"runs": [_data(each) for each in listed], "bytes": size}, ensure_ascii=True, indent=2))
        return 0
    rows = [_row(each) for each in listed]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"{plural(len(listed), 'run')}, {size / 1e6:.1f} MB")
    return 0


def _row(run: ListedRun) -> tuple[str, ...]:
    """Folder, start, state, steps, loss, size, base checkpoint."""
    return (
        run.folder.name,
        time.strftime("%Y-%m-%d %H:%M", time.localtime(run.started)),
        run.state,
        f"step {run.step} of {run.steps}" if run.steps else f"step {run.step}",
        "" if run.loss is None else f"loss {run.loss:.4f}",
        f"{run.bytes / 1e6:.1f} MB",
        run.base,
    )


def _data(run: ListedRun) -> dict[str, Any]:
    names = ("name", "state", "started", "step", "steps", "epochs", "loss", "base", "images", "bytes")
    return {"run": run.folder.name, **{name: getattr(run, name) for name in names}, "saved": list(run.saved)}
