"""``python -m trainer prepare``: make a dataset from a folder of images."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..config.overrides import apply_override
from ..config.prepare_settings import PrepareSettings, parse_settings, read_settings
from ..config.setting import settings_of
from ..core.errors import UserError

_EXAMPLES = """\
examples:

  python -m trainer prepare images/ --out datasets --trigger mystyle1 --class "anime face" --resolution 512
  python -m trainer prepare 10_miku.zip --out datasets --trigger mk01 --class girl --resolution 768 --buckets
  python -m trainer prepare images/ --out datasets --trigger mk01 --tagger models/wd-tagger --export kohya

SOURCE is a folder (sub-folders are read; a name such as 10_miku sets the repeats, as in kohya's trainer), a zip or tar archive, or one
image. It is never changed. Captions are read from .txt or .caption files, JSON files (gallery-dl, waifuc, Hydrus), metadata.jsonl or .csv,
captions.json or kohya's metadata JSON. Running the same command again only processes what is new. docs/datasets.md describes every setting.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command's parser."""
    parser = subparsers.add_parser(
        "prepare",
        help="make a captioned dataset from a folder of images",
        description="Make a clean, captioned dataset from a folder of images.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a folder, a zip or tar archive, or one image")
    parser.add_argument("--out", type=Path, default=Path("datasets"), metavar="DIR", help="folder for the dataset's folder (datasets)")
    _add_setting(parser, "--trigger", "trigger", metavar="WORD")
    _add_setting(parser, "--class", "class_description", metavar="TEXT")
    _add_setting(parser, "--resolution", "resolution", metavar="N")
    sizes = parser.add_argument_group("sizes")
    shape = sizes.add_mutually_exclusive_group()
    shape.add_argument(
        "--buckets", action="store_true", help="Keep aspect ratios, by kohya's rules (default for images that are not square)."
    )
    shape.add_argument("--square", action="store_true", help="Cut every image to a square.")
    _add_setting(sizes, "--bucket-step", "buckets.step", metavar="N")
    _add_setting(sizes, "--no-upscale", "buckets.no_upscale")
    _add_setting(sizes, "--crop", "crop")
    _add_setting(sizes, "--repeats", "repeats", metavar="N")
    _add_setting(sizes, "--alpha", "alpha")
    _add_setting(sizes, "--background", "background", metavar="COLOUR")
    captions = parser.add_argument_group("captions")
    _add_setting(captions, "--captions", "captions.source")
    _add_setting(captions, "--tagger", "tagger.model", metavar="MODEL")
    _add_setting(captions, "--threshold", "tagger.threshold", metavar="P")
    _add_setting(captions, "--remove", "captions.remove", metavar="TAG")
    _add_setting(captions, "--replace", "captions.replace", metavar="TAG=TAG")
    _add_setting(captions, "--separator", "captions.separator")
    _add_setting(captions, "--trigger-position", "captions.trigger_position")
    _add_setting(captions, "--wildcards", "training.wildcards")
    _add_setting(captions, "--shuffle", "training.shuffle_caption")
    _add_setting(captions, "--keep-tokens", "training.keep_tokens", metavar="N")
    _add_setting(captions, "--caption-dropout", "training.caption_dropout", metavar="P")
    other = parser.add_argument_group("other")
    other.add_argument("--regularisation", type=Path, metavar="SOURCE", help="a second set of images, trained without the trigger word")
    _add_setting(other, "--regularisation-weight", "regularisation_weight", metavar="W")
    other.add_argument(
        "--replace-other", action="store_true", help="replace a dataset of the same name that has another source or other settings"
    )
    other.add_argument("--settings", type=Path, metavar="FILE.toml", help="read settings from a file; options take precedence")
    other.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="any setting: clean.min_side=256")
    other.add_argument("--export", choices=("kohya", "imagefolder"), help="also write the dataset for another trainer")
    other.add_argument("--export-to", type=Path, metavar="DIR", help="where to write it (default: beside the dataset)")
    other.add_argument("--sheet", type=Path, metavar="FILE", help="also save a contact sheet")
    other.add_argument("--workers", type=int, metavar="N", help="threads (all cores)")
    other.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prepare the dataset, print the report, export it if asked to."""
    from ..dataset import contact_sheet, prepare_dataset
    from ..dataset.export.export_dataset import export_dataset
    from ..dataset.report.contact_sheet import save_sheet

    settings = parse_settings(_settings(args))
    with _progress(quiet=args.json) as progress:
        result = prepare_dataset(
            args.source, args.out, settings, regularisation=args.regularisation, progress=progress, workers=args.workers or None,
            replace_other=args.replace_other,
        )  # fmt: skip
    report = result.report.to_json()
    if args.export:
        report["export"] = str(export_dataset(result.dataset, args.export, args.export_to))
    if args.sheet:
        save_sheet(contact_sheet(result.dataset, result.sources), args.sheet)
        report["sheet"] = str(args.sheet)
    if args.json:
        print(json.dumps(report, ensure_ascii=True))
        return 0
    print(result.report.text(), end="")
    print(f"\nSee {result.dataset.path / 'report.html'}")
    if args.export:
        print(f"Exported for {args.export}: {report['export']}")
    return 0


def _add_setting(group: argparse._ActionsContainer, flag: str, key: str, *, metavar: str | None = None) -> None:
    """An option for a dataset setting, which gives its type, choices and help."""
    described = settings_of(PrepareSettings)[key]
    default = "" if described.required or described.default in ("", (), {}, False) else f" (default: {described.default})"
    text = f"{described.description}{default}".replace("%", "%%")
    if described.type is bool:
        group.add_argument(flag, dest=key, action="store_const", const=True, help=text)
    elif described.choices:
        group.add_argument(flag, dest=key, choices=described.choices, help=text)
    elif described.type in (tuple, dict):
        group.add_argument(flag, dest=key, action="append", metavar=metavar, help=f"{text} May be repeated.")
    else:
        group.add_argument(flag, dest=key, type=described.type, metavar=metavar, help=text)


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """Plain data for ``parse_settings``: the file, then the options, then ``--set``."""
    data = read_settings(args.settings) if args.settings else {}
    options = {key: value for key in settings_of(PrepareSettings) if (value := getattr(args, key, None)) is not None}
    if "captions.replace" in options:
        options["captions.replace"] = _pairs(options["captions.replace"])
    if args.buckets:
        data["shape"], data["buckets"] = "buckets", data.get("buckets") or {}
    if args.square:
        data["shape"] = "square"
        data.pop("buckets", None)
    for key, value in options.items():
        section, _, name = key.rpartition(".")
        if section:
            data[section] = {**(data.get(section) or {}), name: value}
        else:
            data[name] = value
    for override in args.overrides:
        apply_override(data, override, example="clean.min_side=256")
    return data


def _pairs(replace: list[str]) -> dict[str, str]:
    pairs = dict(pair.split("=", 1) for pair in replace if "=" in pair)
    if len(pairs) < len(replace):
        raise UserError("--replace takes TAG=TAG, each tag once.", "For example: --replace 'grey hair=gray hair'", kind="config")
    return pairs


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on stderr, so that stdout has only the report; without a terminal, a line every few seconds."""
    from ..core.work.progress import report_progress
    from ..dataset.preparation.preparation_progress import WAITING_FOR_FOLDER

    def report_line(done: int, total: int, text: str) -> None:
        if text == WAITING_FOR_FOLDER:
            print(text, file=sys.stderr)
        else:
            report_progress("preparing images", done, total)

    if quiet or not sys.stderr.isatty():
        yield report_line
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None)

        def show(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, description=escape(text[-40:]))

        yield show
