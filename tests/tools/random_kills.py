"""Kill the pack at random points of its work, run the work again, and compare what is on the disk with what an undisturbed run leaves.

``python tests/tools/random_kills.py --kills 300 --seed 0`` kills processes that prepare, train, publish, export and convert. It prints each
difference with the seed that reproduces it. POSIX only: each attempt is a fork of this process, which has loaded the libraries.

A kill (SIGKILL) comes either just before the n-th operation that changes the file system, which is exact, or after a random time, which
also hits the middle of a write. Sometimes the repetition is killed, too. After that the work must end without an error, with the same files
and the same bytes; only logs may differ.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:] = [str(ROOT), *(entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent)]

# Python's audit events of what changes the file system. "open" counts for files that are opened for writing.
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "os.utime", "os.chmod", "os.symlink")
# Files that tell when and how often something was done: only their names are compared.
_LOGS = (
    "*/events.jsonl", "*/child.log", "*/result.json", "*/loss_curve.png", "*/report.html", "*/.prepare/*", "*.lock",
    "*/checkpoint-hashes.json", "*/started.json",
)  # fmt: skip
_CHILD_SECONDS = 30.0  # for a child whose parent was killed to save and leave


@dataclass(frozen=True)
class Work:
    """Something that the pack does in a folder; after a kill the user does it again."""

    name: str
    folder: str  # the template that it starts from
    act: Callable[[Path], None]
    may_leave: str = ""  # a pattern of files that an undisturbed run does not leave


@dataclass(frozen=True)
class Undisturbed:
    """What an undisturbed run leaves, how long it takes, and how often it changes the file system."""

    files: dict[str, str]
    seconds: float
    changes: int


@dataclass
class Tally:
    """What was done. ``failures``: a line for each difference."""

    kills: int = 0
    trials: int = 0
    failures: list[str] = field(default_factory=list)


def main() -> int:
    """Kill ``--kills`` times; exit status 1 if anything differed."""
    parser = argparse.ArgumentParser(prog="tests/tools/random_kills.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=300, help="how many processes to kill at least (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first attempt; the next ones follow (default: %(default)s)")
    parser.add_argument("--only", metavar="WORK", help="one kind of work: " + ", ".join(work.name for work in WORKS))
    args = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", MPLBACKEND="Agg")
    works = [work for work in WORKS if args.only in (None, work.name)]
    _load_libraries()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder, contextlib.ExitStack() as running:
        if _IN_CHILD in works:
            running.enter_context(_preloaded_children(Path(folder) / "quick"))
        tally = search(Path(folder).resolve(), args.kills, args.seed, works)
    print(f"{tally.kills} kills in {tally.trials} trials, {len(tally.failures)} differences")
    return 1 if tally.failures else 0


def search(folder: Path, kills: int, seed: int, works: list[Work]) -> Tally:
    """Try the works in turn until ``kills`` processes were killed, and each was tried once."""
    make_templates(folder / "templates")
    undisturbed = {work.name: _undisturbed(folder, work) for work in works}
    for name, known in undisturbed.items():
        print(f"{name}: {len(known.files)} files, {known.changes} changes, {known.seconds:.1f} s", flush=True)
    tally = Tally()
    while tally.kills < kills or tally.trials < len(works):
        work = works[tally.trials % len(works)]
        told = trial(folder, work, undisturbed[work.name], seed + tally.trials, tally)
        for line in told:
            print(f"{work.name}, seed {seed + tally.trials}: {line}", flush=True)
        tally.failures += told
        tally.trials += 1
    return tally


def trial(folder: Path, work: Work, known: Undisturbed, seed: int, tally: Tally) -> list[str]:
    """Kill the work once or more and repeat it; what is then otherwise than it should be."""
    chance = random.Random(f"{work.name} {seed}")
    place = _fresh(folder, work)
    points: list[float] = []
    while not points or (chance.random() < 0.3 and len(points) < 3):
        points.append(chance.randint(1, known.changes) if chance.random() < 0.6 else chance.uniform(0, known.seconds))
    how = []
    for point in points:
        status, output = attempt(work, place, point)
        how.append(f"{point:.2f} s" if isinstance(point, float) else f"change {point}")
        if status == -signal.SIGKILL:
            tally.kills += 1
        elif status:
            return [f"after {how}: exit status {status}: {output}"]
    status, output = attempt(work, place, None)
    if status:
        return [f"killed at {how}, repeated: exit status {status}: {output}"]
    _wait_for_children(place)
    found = {name: digest for name, digest in files_of(place).items() if name in known.files or not fnmatchcase(name, work.may_leave)}
    return [f"killed at {how}: {line}" for line in differences(known.files, found)]


def attempt(work: Work, place: Path, point: int | float | None) -> tuple[int, str]:
    """Do the work in a fork, killed before the ``point``-th change or after ``point`` seconds; status (negative: signal) and output."""
    log = place.with_suffix(".log")
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _act(work, place, log, point if isinstance(point, int) else None)
    if isinstance(point, float):
        time.sleep(point)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, log.read_text(encoding="utf-8", errors="replace")[-1500:] if log.exists() else ""


def _act(work: Work, place: Path, log: Path, kill_at: int | None, counted: Path | None = None) -> None:
    """In the fork: do the work and end the process."""
    status = 1
    try:
        os.setsid()
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        os.chdir(place)
        count = _count_changes(place, kill_at)
        work.act(place)
        if counted is not None:
            changes = count()
            counted.write_text(str(changes), encoding="utf-8")
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _count_changes(place: Path, kill_at: int | None) -> Callable[[], int]:
    """Count what changes files below ``place`` in this process from now on, and kill it just before the ``kill_at``-th time."""
    changes = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                return
        elif event not in _CHANGES:
            return
        else:
            path = arguments[0]
        if isinstance(path, int) or (os.path.isabs(text := os.fsdecode(path)) and not text.startswith(str(place))):
            return
        changes += 1
        if changes == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: changes


def _undisturbed(folder: Path, work: Work) -> Undisturbed:
    place, counted = _fresh(folder, work), folder / "changes"
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _act(work, place, place.with_suffix(".log"), None, counted)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, f"{work.name}: {place.with_suffix('.log').read_text(encoding='utf-8')}"
    return Undisturbed(files_of(place), time.monotonic() - began, int(counted.read_text(encoding="utf-8")))


def _fresh(folder: Path, work: Work) -> Path:
    """The folder in which the work is done, as it is at its start: always the same path."""
    place = folder / "work"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder / "templates" / work.folder, place)
    return place


def _wait_for_children(place: Path) -> None:
    """Until no training child of an earlier attempt is left."""
    from tests.tools.children.processes import living

    end = time.monotonic() + _CHILD_SECONDS
    while any(each.run.startswith(str(place)) for each in living()):
        assert time.monotonic() < end, "a training process is left"
        time.sleep(0.1)


def files_of(place: Path) -> dict[str, str]:
    """Every file below ``place`` with the hash of its bytes; of a log only that it is there."""
    found = {}
    for path in sorted(place.rglob("*")):
        name = f"/{path.relative_to(place).as_posix()}"
        if path.is_dir():
            found[f"{name}/"] = ""
        elif "/tensorboard/" not in name:  # a file for each start
            known = any(fnmatchcase(name, pattern) for pattern in _LOGS)
            found[name] = "" if known else hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def differences(wanted: dict[str, str], found: dict[str, str]) -> list[str]:
    """What is missing, left over, or has other bytes."""
    lines = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    lines += [f"{name} is left over" for name in found.keys() - wanted.keys()]
    return sorted(lines + [f"{name} has other bytes" for name in wanted.keys() & found.keys() if wanted[name] != found[name]])


# what is killed

_CONFIGURATION = """\
name = "style"
base.checkpoint = "base.safetensors"
dataset.path = "datasets/sks_girl"
network = {rank = 4, alpha = 2.0}
optimizer.lr = 1e-3
training = {max_steps = 4, precision = "fp32", device = "cpu", checkpoint_every = 2, keep_checkpoints = 0, gradient_accumulation = 1}
sample = {every_epochs = 1, prompts = ["sks girl"], steps = 2}
output = {runs = "runs", publish = "loras", tensorboard = false}
"""


def make_templates(folder: Path) -> None:
    """The folders that works start from: pictures with captions, a prepared dataset with a checkpoint, a finished run."""
    from random_checkpoints.make_checkpoint import make_checkpoint
    from tests.unit.training_helpers import make_pictures

    pictures = folder / "pictures"
    make_pictures(pictures / "source", 5, (96, 80))
    for path in (pictures / "source").glob("*.png"):
        path.with_suffix(".txt").write_text(f"1girl, number {path.stem}", encoding="utf-8")
    shutil.copytree(pictures / "source", pictures / "packed" / "4_girls")
    shutil.make_archive(str(pictures / "source"), "zip", pictures / "packed")
    shutil.rmtree(pictures / "packed")
    _in_place(folder, "pictures", "changed", [_prepare, _change])
    _in_place(folder, "pictures", "dataset", [_prepare])
    make_checkpoint(folder / "dataset" / "base.safetensors", "shallow")
    (folder / "dataset" / "run.toml").write_text(_CONFIGURATION, encoding="utf-8")
    _in_place(folder, "dataset", "exported", [_export_dataset("kohya")])
    _in_place(folder, "dataset", "trained", [_train])


def _in_place(folder: Path, source: str, name: str, acts: list[Callable[[Path], None]]) -> None:
    """Make a template out of another one, in the folder that works are done in: paths are part of some files."""
    work = Work(name, source, lambda place: [act(place) for act in acts][-1])
    _undisturbed(folder.parent, work)
    shutil.copytree(folder.parent / "work", folder / name)


def _command(*words: str) -> None:
    from trainer import cli

    status = cli.main(words)
    if status:
        raise SystemExit(f"exit status {status}")


def _prepare(place: Path) -> None:
    _command("prepare", "source", "--out", "datasets", "--trigger", "sks", "--class", "girl", "--resolution", "64", "--workers", "1")


def _prepare_archive(place: Path) -> None:
    _command("prepare", "source.zip", "--out", "datasets", "--trigger", "sks", "--class", "girl", "--resolution", "64", "--buckets")


def _change(place: Path) -> None:
    (place / "source" / "00.png").unlink()
    (place / "source" / "01.png").rename(place / "source" / "09.png")
    (place / "source" / "02.txt").write_text("another caption", encoding="utf-8")
    shutil.copy2(place / "source" / "03.png", place / "source" / "04.png")


def _export_dataset(kind: str) -> Callable[[Path], None]:
    def act(place: Path) -> None:
        from trainer.dataset import export_dataset, open_dataset

        export_dataset(open_dataset(place / "datasets" / "sks_girl"), kind, place / "exported")  # type: ignore[arg-type]

    return act


def _train(place: Path) -> None:
    """Parent and child in this process, so that both are killed, as by a power failure."""
    from trainer.launch import launcher
    from trainer.training.run import train_run

    def run_child(folder: Any, *_: object) -> None:
        assert train_run(folder.path, watch_stdin=False) == 0

    launcher._run_child = run_child  # type: ignore[assignment]
    _command("train", "run.toml")


def _train_in_child(place: Path) -> None:
    """Only the parent is killed; its child saves and leaves while the next one may have started already."""
    from trainer.launch import launcher

    command = launcher.command
    launcher.command = lambda run: [str(_QUICK[0]), *command(run)[1:]]
    _command("train", "run.toml")


def _publish_again(place: Path) -> None:
    shutil.rmtree(place / "loras", ignore_errors=True)
    _train(place)


def _published(place: Path) -> str:
    return str(next((place / "loras").glob("*.safetensors")))


def _convert(place: Path) -> None:
    _command("export", _published(place), "converted.safetensors", "--format", "diffusers", "--rank", "2", "--overwrite")


def _describe(place: Path) -> None:
    _command("export", _published(place), _published(place), "--title", "A title", "--overwrite")


def _merge(place: Path) -> None:
    _command("export", _published(place), "merged.safetensors", "--into-checkpoint", "base.safetensors", "--overwrite")


def _prune(place: Path) -> None:
    _command("prune", "runs", "--days", "0")


WORKS = (
    Work("prepare", "pictures", _prepare),
    Work("prepare an archive", "pictures", _prepare_archive),
    Work("prepare what changed", "changed", _prepare),
    Work("export a dataset", "dataset", _export_dataset("kohya")),
    Work("export a dataset again", "exported", _export_dataset("imagefolder")),
    Work("train", "dataset", _train),
    # a child whose parent was killed saves the step at which it was
    Work("train in a child", "dataset", _train_in_child, may_leave="/runs/*/checkpoints/step-00000[13]/*"),
    Work("publish", "trained", _publish_again),
    Work("convert", "trained", _convert),
    Work("describe", "trained", _describe),
    Work("merge into a checkpoint", "trained", _merge),
    Work("prune", "trained", _prune),
)
_IN_CHILD = next(work for work in WORKS if work.act is _train_in_child)
_QUICK: list[Path] = []  # the program that starts training children with the libraries loaded already


def _load_libraries() -> None:
    """Load what the works import, so that a fork begins at once."""
    from tests.tools.children.preloaded_trainer import PRELOADED
    from trainer.core.library_imports import import_models, import_text_models

    for name in (*PRELOADED, "trainer.cli", "trainer.launch.launcher", "trainer.dataset", "tests.unit.training_helpers", "imagehash"):
        importlib.import_module(name)
    import_models()
    import_text_models()


@contextlib.contextmanager
def _preloaded_children(folder: Path) -> Iterator[None]:
    """The process that training children are forked from."""
    from tests.tools.children.preloaded_trainer import preloaded

    folder.mkdir(parents=True)
    with preloaded(Path(sys.executable), folder) as program:
        _QUICK.append(program)
        yield


if __name__ == "__main__":
    sys.exit(main())
