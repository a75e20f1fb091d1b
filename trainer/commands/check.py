"""``python -m trainer check``: read every file of a dataset, or of a run's datasets and checkpoint, and compare its content."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..core.counting import plural


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command's parser."""
    parser = subparsers.add_parser(
        "check",
        help="read every image of a dataset, or what a configuration names, and compare the contents",
        description=(
            "Training and preparing read a file again only when its size, times or inode changed. This reads all of them: every image of "
            "a dataset and, of a configuration, the checkpoint too, whose remembered hash is corrected."
        ),
        epilog="The exit status is 1 when something is not what it was.",
    )
    parser.add_argument("place", type=Path, metavar="DATASET|FILE.toml", help="a prepared dataset's folder, or a run's configuration")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check and print what was found."""
    if args.place.is_dir():
        return 0 if _is_as_prepared(args.place) else 1
    from ..config.run_config import load
    from ..families import open_checkpoint
    from ..runs.run_folder import cache_folder

    settings = load(args.place)
    datasets = [settings.dataset, *settings.dataset.more]
    fine = all([_is_as_prepared(Path(each.path)) for each in datasets])
    checkpoint, cache = open_checkpoint(settings.base.checkpoint, settings.base.vae), cache_folder(settings)
    remembered, identity = checkpoint.identity(cache), checkpoint.identity(cache, full=True)
    if remembered != identity:
        print(f"{checkpoint.path}: the content is another than the one remembered. Runs with it are new runs from now on.")
        return 1
    print(f"{checkpoint.path}: as remembered ({identity[:16]})")
    return 0 if fine else 1


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
