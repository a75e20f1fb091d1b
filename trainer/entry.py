"""The script of a training process: ``entry.py --run FOLDER [--watch-stdin] [--accelerate CONFIGURATION]``.

It is started by absolute path, so it puts the pack's folder on ``sys.path`` itself (portable Pythons ignore PYTHONPATH). With
``--accelerate``, accelerate's launcher reads its configuration first: one process trains right here, in the environment that the launcher
prepared; several are started by the launcher, each with this script. Other launchers start it without that option.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from contextlib import suppress
from pathlib import Path


def main() -> int:
    """Train the run in the folder ``--run``; the exit status is 0 for done, 1 for an error, 3 for a requested stop."""
    gc.disable()  # what is imported stays, so that looking for garbage among it only takes time; train_run looks again
    here = Path(__file__).resolve().parent
    # Python put trainer/ itself first, where the names of our modules would hide other modules
    sys.path[:] = [str(here.parent), *(entry for entry in sys.path if Path(entry or ".").resolve() != here)]

    parser = argparse.ArgumentParser(description="Train one prepared run (normally started by the pack).")
    parser.add_argument("--run", required=True, type=Path, help="run folder with config.json")
    parser.add_argument("--watch-stdin", action="store_true", help="stop when standard input ends")
    parser.add_argument("--accelerate", type=Path, metavar="CONFIGURATION", help="a file of `accelerate config` to launch with")
    args = parser.parse_args()
    from trainer.core.terminal import escape_unprintable

    # our parent reads the output as UTF-8; a portable Python ignores PYTHONIOENCODING
    escape_unprintable(encoding="utf-8" if args.watch_stdin else None)
    if args.accelerate is not None:
        from trainer.launch.accelerated import launched

        if launched(args.accelerate, Path(__file__).resolve(), ["--run", str(args.run), *(["--watch-stdin"] if args.watch_stdin else [])]):
            return 0
    from trainer.training.run import train_run

    status = train_run(args.run, watch_stdin=args.watch_stdin)
    with suppress(OSError):  # the log may be on a disk that is full
        sys.stdout.flush()
        sys.stderr.flush()
    # threads of libraries (CUDA, TensorBoard) may keep the interpreter from exiting; everything is on disk by now
    os._exit(status)


if __name__ == "__main__":
    main()
