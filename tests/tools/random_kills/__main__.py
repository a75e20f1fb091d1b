"""Kill the pack at random points of its work, run the work again, and compare what is on the disk with what an undisturbed run leaves.

``python -m tests.tools.random_kills --kills 300 --seed 0`` kills processes that prepare, train, publish, export and convert. It prints each
difference with the seed that reproduces it. POSIX only: each attempt is a fork of this process, which has loaded the libraries.

A kill (SIGKILL) comes either just before the n-th operation that changes the file system, which is exact, or after a random time, which
also hits the middle of a write. Sometimes the repetition is killed, too. After that the work must end without an error, with the same files
and the same bytes; only logs may differ.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from pathlib import Path

from tests.tools.random_kills.kill import Tally, Work, run_undisturbed, try_once
from tests.tools.random_kills.works import WORKS, load_libraries, make_templates, preloaded_children


def main() -> int:
    """Kill ``--kills`` times; exit status 1 if anything differed."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.random_kills", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=300, help="how many processes to kill at least (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first attempt; the next ones follow (default: %(default)s)")
    parser.add_argument("--only", metavar="WORK", help="one kind of work: " + ", ".join(work.name for work in WORKS))
    args = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", MPLBACKEND="Agg")
    works = [work for work in WORKS if args.only in (None, work.name)]
    load_libraries()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder, contextlib.ExitStack() as running:
        running.enter_context(preloaded_children(Path(folder) / "quick"))
        tally = search(Path(folder).resolve(), args.kills, args.seed, works)
    print(f"{tally.kills} kills in {tally.trials} trials, {len(tally.failures)} differences")
    return 1 if tally.failures else 0


def search(folder: Path, kills: int, seed: int, works: list[Work]) -> Tally:
    """Try the works in turn until ``kills`` processes were killed, and each was tried once."""
    make_templates(folder / "templates")
    undisturbed = {work.name: run_undisturbed(folder, work) for work in works}
    for name, known in undisturbed.items():
        print(f"{name}: {len(known.files)} files, {known.changes} changes, {known.seconds:.1f} s", flush=True)
    tally = Tally()
    while tally.kills < kills or tally.trials < len(works):
        work = works[tally.trials % len(works)]
        lines = try_once(folder, work, undisturbed[work.name], seed + tally.trials, tally)
        for line in lines:
            print(f"{work.name}, seed {seed + tally.trials}: {line}", flush=True)
        tally.failures += lines
        tally.trials += 1
    return tally


if __name__ == "__main__":
    sys.exit(main())
