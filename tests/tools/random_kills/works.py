"""What is killed: everything that the pack does in a folder."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.tools.random_kills.kill import Work, run_undisturbed

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
    run_undisturbed(folder.parent, work)
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
_QUICK: list[Path] = []  # the program that starts training children with the libraries loaded already


def load_libraries() -> None:
    """Load what the works import, so that a fork begins at once."""
    from tests.tools.children.preloaded_trainer import PRELOADED
    from trainer.core.library_imports import import_models, import_text_models

    for name in (*PRELOADED, "trainer.cli", "trainer.launch.launcher", "trainer.dataset", "tests.unit.training_helpers", "imagehash"):
        importlib.import_module(name)
    import_models()
    import_text_models()


@contextlib.contextmanager
def preloaded_children(folder: Path) -> Iterator[None]:
    """A fork of this process, from which training children are forked."""
    from tests.tools.children.preloaded_trainer import client_program, serve

    folder.mkdir(parents=True)
    program, place = client_program(Path(sys.executable), folder)
    server = os.fork()
    if server == 0:
        try:
            serve(str(place))
        finally:
            os._exit(1)
    _QUICK.append(program)
    try:
        while not place.exists():
            assert os.waitpid(server, os.WNOHANG)[0] == 0, "the server ended"
            time.sleep(0.02)
        yield
    finally:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)
