"""``python -m trainer check``: read every file of a dataset, or of a run's datasets and checkpoint, and compare their contents."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..core.counting import plural


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command's parser."""
    parser = subparsers.add_parser(
        "check",
        help="read every file of a dataset or configuration and compare the contents",
        description=(
            "Training and preparing read a file again only if its size, times or inode changed. This command reads them all: every image "
            "of a dataset, and for a configuration also the checkpoint, whose stored hash is corrected."
        ),
        epilog="The exit status is 1 if something changed.",
    )
    parser.add_argument("place", type=Path, metavar="DATASET|FILE.toml", help="a prepared dataset's folder, or a run's configuration")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check, and print the results."""
    if args.place.is_dir():
        return 0 if _is_as_prepared(args.place) else 1
    from ..config.run_config import load_config
    from ..families import open_checkpoint
    from ..runs.run_folder import cache_folder

    settings = load_config(args.place)
    datasets = [settings.dataset, *settings.dataset.more]
    unchanged = all([_is_as_prepared(Path(each.path)) for each in datasets])
    base, cache = settings.base, cache_folder(settings)
    checkpoint = open_checkpoint(base.checkpoint, base.vae, base.text_encoder)
    stored, identity = checkpoint.identity(cache), checkpoint.identity(cache, full=True)
    if stored != identity:
        print(f"{checkpoint.path}: the content differs from what its stored hash says. Runs with it are new runs from now on.")
        return 1
    print(f"{checkpoint.path}: unchanged ({identity[:16]})")
    return 0 if unchanged else 1


def _is_as_prepared(folder: Path) -> bool:
    from ..dataset import open_dataset
    from ..dataset.manifest.integrity import changed_images, changed_images_error

    dataset = open_dataset(folder)
    changed = changed_images(dataset, full=True)
    if changed:
        error = changed_images_error(dataset, changed)
        print(f"{error.message}\n{error.hint}")
        return False
    print(f"{folder}: {plural(len(dataset.items), 'image')} as prepared ({dataset.hash[:16]})")
    return True
