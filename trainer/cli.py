"""The command line: one sub-command in each file of ``commands/``, each with ``add_parser`` and ``run``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from . import __version__
from .commands import (
    check_command,
    demo_command,
    export_command,
    info_command,
    prepare_command,
    prune_command,
    runs_command,
    sample_command,
    train_command,
)
from .commands.started import as_typed, typed
from .core.diagnosis import as_user_error
from .core.errors import Cancelled
from .core.terminal import escape_unprintable
from .core.work.progress import ProgressLines, send_progress_to

COMMANDS = (
    prepare_command,
    train_command,
    sample_command,
    export_command,
    info_command,
    check_command,
    runs_command,
    prune_command,
    demo_command,
)


def build_parser() -> argparse.ArgumentParser:
    """The parser with every sub-command."""
    parser = argparse.ArgumentParser(
        prog=as_typed(),
        description="AnimeLoRA: prepare a dataset, train a LoRA, sample from it, export it for other tools.",
        epilog=typed("Each command has its own help: python -m trainer train --help"),
    )
    parser.add_argument("--version", action="version", version=f"AnimeLoRA {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 for success, 1 for an error that was printed to stderr, 130 for a cancelled run."""
    escape_unprintable()
    args = build_parser().parse_args(argv)
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # their warnings are for programmers; errors are still shown
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    try:
        with send_progress_to(ProgressLines()):
            status: int = args.run(args)
    except (KeyboardInterrupt, Cancelled):
        print("stopped; finished work is kept.", file=sys.stderr)
        return 130
    except Exception as error:
        user_error = as_user_error(error)
        if user_error is None:
            raise
        print(f"error: {typed(user_error.message)}", file=sys.stderr)
        if user_error.hint:
            print(f"hint: {typed(user_error.hint)}", file=sys.stderr)
        return 1
    return status
