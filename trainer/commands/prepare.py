"""``python -m trainer prepare``: from a folder of pictures to a dataset."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_EXAMPLES = """\
examples:

  python -m trainer prepare pictures/ --out datasets --trigger mystyle1 --class "anime face" --resolution 512
  python -m trainer prepare 10_miku.zip --out datasets --trigger mk01 --class girl --resolution 768 --buckets
  python -m trainer prepare pictures/ --out datasets --trigger mk01 --tagger models/wd-tagger --export kohya

SOURCE is a folder (sub-folders are read, kohya's 10_name folders count as repeats), a zip or tar archive, or one picture. It is never
changed. Captions come from .txt or .caption files, JSON files (gallery-dl, waifuc, Hydrus), metadata.jsonl or .csv, captions.json or
kohya's metadata JSON. Running the same command again does only what is new. docs/datasets.md describes every setting.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command's parser."""
    parser = subparsers.add_parser(
        "prepare",
        help="make a captioned dataset from a folder of pictures",
        description="Make a clean, captioned dataset from pictures as you have them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder, zip or tar archive, or one picture")
    parser.add_argument("--out", type=Path, default=Path("datasets"), metavar="DIR", help="the dataset's folder is made here (datasets)")
    parser.add_argument("--trigger", metavar="WORD", help="a rare word that will call the style or character")
    parser.add_argument("--class", dest="class_description", metavar="TEXT", help="what the pictures show, e.g. 'anime face'")
    parser.add_argument("--resolution", type=int, metavar="N", help="side in pixels, or the area's root in buckets (512)")
    sizes = parser.add_argument_group("sizes")
    shape = sizes.add_mutually_exclusive_group()
    shape.add_argument("--buckets", action="store_true", help="keep aspect ratios, by kohya's rules (default for what is not square)")
    shape.add_argument("--square", action="store_true", help="cut every picture to a square")
    sizes.add_argument("--bucket-step", type=int, metavar="N", help="sides are multiples of this (64)")
    sizes.add_argument("--no-upscale", action="store_true", help="with --buckets: small pictures keep their size")
    sizes.add_argument("--crop", choices=("top", "face", "centre", "none"), help="what stays when the shape differs (top)")
    sizes.add_argument("--repeats", type=int, metavar="N", help="how often an epoch shows each picture (1)")
    sizes.add_argument("--alpha", choices=("background", "mask"), help="transparent parts: onto the background, or also out of the loss")
    sizes.add_argument("--background", metavar="COLOUR", help="#rrggbb or a name (white)")
    captions = parser.add_argument_group("captions")
    captions.add_argument(
        "--captions", choices=("auto", "instance", "sidecar", "tags", "sidecar+tags"), help="where captions come from (auto)"
    )
    captions.add_argument("--tagger", metavar="MODEL", help="WD-tagger .onnx with its selected_tags.csv beside it, or their folder")
    captions.add_argument("--threshold", type=float, metavar="P", help="smallest probability of a tag (0.35)")
    captions.add_argument("--remove", action="append", metavar="TAG", help="leave a tag out, * for anything; may be repeated")
    captions.add_argument("--replace", action="append", metavar="TAG=TAG", help="write another tag; may be repeated")
    captions.add_argument("--separator", choices=("auto", "comma", "space"), help="what stands between tags (auto)")
    captions.add_argument(
        "--trigger-position", choices=("front", "keep"), help="keep: where the caption has it, in front only where it has none (front)"
    )
    captions.add_argument(
        "--wildcards", action="store_true", help="one of {a|b} and one of several lines is chosen each time, as by kohya's enable_wildcard"
    )
    captions.add_argument("--shuffle", action="store_true", help="the trainer shuffles tags after the kept ones")
    captions.add_argument("--keep-tokens", type=int, metavar="N", help="tags in front that are never shuffled or dropped (1)")
    captions.add_argument("--caption-dropout", type=float, metavar="P", help="share of steps without a caption (0)")
    other = parser.add_argument_group("other")
    other.add_argument("--regularisation", type=Path, metavar="SOURCE", help="a second set, trained without the trigger word")
    other.add_argument("--regularisation-weight", type=float, metavar="W", help="its weight in the loss (1)")
    other.add_argument(
        "--replace-other", action="store_true", help="write over a dataset of this name that has another source or other settings"
    )
    other.add_argument("--settings", type=Path, metavar="FILE.toml", help="settings from a file; options win over it")
    other.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="any setting: clean.min_side=256")
    other.add_argument("--export", choices=("kohya", "imagefolder"), help="also write the dataset for another trainer")
    other.add_argument("--export-to", type=Path, metavar="DIR", help="where (default: beside the dataset)")
    other.add_argument("--sheet", type=Path, metavar="FILE", help="also save a contact sheet")
    other.add_argument("--workers", type=int, metavar="N", help="threads (all cores)")
    other.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prepare, show the report, export."""
    from ..dataset import contact_sheet, parse_settings, prepare_dataset
    from ..dataset.export.export_dataset import export_dataset

    settings = parse_settings(_settings(args))
    with _progress(quiet=args.json) as progress:
        result = prepare_dataset(
            args.source, args.out, settings, regularisation=args.regularisation, progress=progress, workers=args.workers or None,
            replace_other=args.replace_other,
        )  # fmt: skip
    report_progress = result.report.to_json()
    if args.export:
        report_progress["export"] = str(export_dataset(result.dataset, args.export, args.export_to))
    if args.sheet:
        args.sheet.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(result.dataset).save(args.sheet)
        report_progress["sheet"] = str(args.sheet)
    if args.json:
        print(json.dumps(report_progress, ensure_ascii=True))
        return 0
    print(result.report.text(), end="")
    print(f"\nSee {result.dataset.path / 'report.html'}")
    if args.export:
        print(f"Exported for {args.export}: {report_progress['export']}")
    return 0


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """Plain data for ``parse_settings``: the file, then the options, then ``--set``."""
    from ..config.overrides import apply_override
    from ..dataset.settings_file import read_settings

    data = read_settings(args.settings) if args.settings else {}
    if args.buckets or args.bucket_step or args.no_upscale:
        data["buckets"] = data.get("buckets") or {}
        if args.buckets:
            data["shape"] = "buckets"
    if args.square:
        data["shape"] = "square"
        data.pop("buckets", None)
    if args.tagger:
        data["tagger"] = {**(data.get("tagger") or {}), "model": args.tagger}
    given = {
        "trigger": args.trigger, "class_description": args.class_description, "resolution": args.resolution, "crop": args.crop,
        "repeats": args.repeats, "alpha": args.alpha, "background": args.background,
        "regularisation_weight": args.regularisation_weight, "buckets.step": args.bucket_step,
        "buckets.no_upscale": args.no_upscale or None, "captions.source": args.captions, "captions.remove": args.remove,
        "captions.replace": _pairs(args.replace), "captions.separator": args.separator,
        "captions.trigger_position": args.trigger_position, "training.wildcards": args.wildcards or None,
        "tagger.threshold": args.threshold,
        "training.shuffle_caption": args.shuffle or None, "training.keep_tokens": args.keep_tokens,
        "training.caption_dropout": args.caption_dropout,
    }  # fmt: skip
    for key, value in given.items():
        if value is None:
            continue
        section, _, name = key.rpartition(".")
        (data.setdefault(section, {}) if section else data)[name] = value
    for override in args.overrides:
        apply_override(data, override, example="clean.min_side=256")
    return data


def _pairs(replace: list[str] | None) -> dict[str, str] | None:
    from ..core.errors import UserError

    if replace is None:
        return None
    pairs = dict(pair.split("=", 1) for pair in replace if "=" in pair)
    if len(pairs) < len(replace):
        raise UserError("--replace needs TAG=TAG, each tag once.", "For example: --replace 'grey hair=gray hair'", kind="config")
    return pairs


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on stderr, so that stdout has only the report; without a terminal a line now and then."""
    from ..core.work.progress import report_progress
    from ..dataset.preparation.progress import WAITING_FOR_FOLDER

    def tell(done: int, total: int, text: str) -> None:
        if text == WAITING_FOR_FOLDER:
            print(text, file=sys.stderr)
        else:
            report_progress("preparing images", done, total)

    if quiet or not sys.stderr.isatty():
        yield tell
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
