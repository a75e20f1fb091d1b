"""``python -m trainer export``."""

from __future__ import annotations

import argparse


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command's parser."""
    parser = subparsers.add_parser("export")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Being written."""
    raise NotImplementedError
