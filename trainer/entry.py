"""The script that ``accelerate launch`` starts: ``entry.py --run FOLDER [--watch-stdin]``.

It is started by absolute path, so it puts the pack's folder on ``sys.path`` itself (portable Pythons ignore PYTHONPATH).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def main() -> int:
    """Train the run whose folder is given; exit status 0 done, 1 error, 3 stopped on request."""
    here = Path(__file__).resolve().parent
    # python put trainer/ itself first, where our module names would hide others
    sys.path[:] = [str(here.parent), *(entry for entry in sys.path if Path(entry or ".").resolve() != here)]
    from trainer.loop import train_run

    parser = argparse.ArgumentParser(description="Train one prepared run (normally started by the pack).")
    parser.add_argument("--run", required=True, type=Path, help="run folder with config.json")
    parser.add_argument("--watch-stdin", action="store_true", help="stop when standard input ends")
    args = parser.parse_args()
    status = train_run(args.run, watch_stdin=args.watch_stdin)
    sys.stdout.flush()
    sys.stderr.flush()
    # threads of libraries (CUDA, TensorBoard) may hold the interpreter at exit; everything is on disk by now
    os._exit(status)


if __name__ == "__main__":
    main()
