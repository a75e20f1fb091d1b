"""Random manifests and logs, and pipes and tar headers that never end, in the folders of a server."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.comfy_server import PromptFailed, Server
from tests.server.faults.fuzzing import HOSTILE, PREFIX, SAME, SOURCES, cheap, outcome
from tests.server.files import TINY, portrait
from tests.server.graphs import Graph, loader, node, prepare, train_settings
from tests.tools import hostile
from trainer.core.errors import UserError
from trainer.dataset import open_dataset
from trainer.runs import events
from trainer.runs.event_log import loss_history, read_samples, validation_history
from trainer.runs.run_folder import RunFolder
from trainer.runs.run_times import start_day, training_seconds

MANY, FEW = 24, 8  # examples for each node
CAPTION_FILES = ("one.txt", "one.png.txt", "one.json", "one.png.json", ".one_meta.json", "metadata.jsonl", "captions.csv")
HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
LOGGED = (
    events.Plan(4, {"64x64": 4}, 1, 2, 2, 100, 72, "sd1", "cpu", "fp32", 1.0),
    events.Phase("training", 1, 2),
    events.Step(1, 2, 1, 0.5, 0.5, 1e-4, 1.0, 1.0, 0.0, 0.5),
    events.Validation(1, 1, 0.5, 2, {"10": 0.5}),
    events.Sample("/tmp/a.png", "a", 1, 1, 0),
    events.Done("a", "b", 2, 1.0, 0.5),
    events.Error("memory", "a", "b"),
    events.Stopped(1, "a"),
)


def some_of(record: Mapping[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """The record with one or two fields replaced by hostile values."""
    return st.dictionaries(st.sampled_from(sorted(record)), HOSTILE, min_size=1, max_size=2).map(lambda changes: {**record, **changes})


def try_manifest(server: Server, made: Path, whole: Path, outcomes: list[str], data: st.DataObject) -> None:
    header = json.loads((whole / "manifest.json").read_text(encoding="utf-8"))
    first, *others = (json.loads(line) for line in (whole / "manifest.jsonl").read_bytes().splitlines())
    row, changed = data.draw(some_of(first) | HOSTILE), data.draw(some_of(header) | st.just({}))
    for folder in (made, server.base / "input" / "fuzzed"):
        shutil.copytree(whole, folder, dirs_exist_ok=True)
        hostile.manifest(folder, [row, *others], changed)
    with suppress(UserError):
        open_dataset(made)
    outcomes += [outcome(server, {"tried": prepare(folder, trigger_word="fuzzed")}, (row, changed)) for folder in ("portraits", "fuzzed")]


def test_random_manifests_give_a_clear_error_or_a_result(server: Server, tmp_path: Path) -> None:
    """In a folder that is prepared again, in a source folder, and in a dataset that a training opens."""
    assert outcome(server, {"tried": prepare(trigger_word="fuzzed")}, "nothing odd") == "result"
    made = next((server.base / "output" / "animelora" / "datasets").glob("fuzzed_face*"))
    whole, outcomes = shutil.copytree(made, tmp_path / "whole"), list[str]()
    shutil.copytree(whole, server.base / "input" / "fuzzed")  # menus list what exists when they are requested
    try:
        examples = MANY if server.thorough else FEW
        settings(SAME, max_examples=examples)(given(data=st.data())(try_manifest))(server, made, whole, outcomes)
    finally:
        shutil.rmtree(server.base / "input" / "fuzzed")
    assert set(outcomes) <= {"error", "result"} and "result" in outcomes
    shutil.copytree(whole, made, dirs_exist_ok=True)
    assert outcome(server, {"tried": prepare(trigger_word="fuzzed")}, "nothing odd again") == "result"


@pytest.mark.skipif(os.name == "nt", reason="NOT CHECKED: pipes are POSIX")
@pytest.mark.parametrize("name", CAPTION_FILES)
def test_pipe_in_place_of_a_caption_does_not_block(server: Server, name: str) -> None:
    folder = server.base / "input" / "piped"
    folder.mkdir()
    try:
        portrait(90, 3).save(folder / "one.png")
        os.mkfifo(folder / name)
        report = server.run({"prep": prepare("piped", trigger_word="piped")}, 60)["prep"]["text"][0]
        assert "1 image" in report and name in report
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("kind", HEADERS)
def test_tar_with_a_huge_header_is_refused(server: Server, kind: bytes, tmp_path: Path) -> None:
    portrait(90, 3).save(tmp_path / "one.png")
    picture, archive = (tmp_path / "one.png").read_bytes(), server.base / "input" / "long.tar.gz"
    hostile.raw_tar(archive, ("one.png", tarfile.REGTYPE, picture), ("x", kind, bytes(1 << 27)), ("two.png", tarfile.REGTYPE, picture))
    try:
        with pytest.raises(PromptFailed, match="longer than 1 MB"):
            server.run({"prep": prepare("long.tar.gz", trigger_word="long")}, 60)
    finally:
        archive.unlink()


def try_log(server: Server, run: RunFolder, compare: dict[str, Any], outcomes: list[str], data: st.DataObject) -> None:
    odd = st.sampled_from(LOGGED).flatmap(lambda event: some_of(json.loads(events.encode_event(event))))
    lines = data.draw(st.lists(odd, min_size=1, max_size=4))
    run.events.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for read in (read_samples, loss_history, validation_history, training_seconds):
        read(run.events)
    start_day(run, record=False)
    answer = requests.get(f"{server.url}/animelora/runs/{run.path.name}", timeout=30)
    assert answer.status_code == 200, (lines, answer.text)
    # another seed each time, else the server takes the image from its cache
    graph = {"base": loader(TINY, full=False), "tried": node(f"{PREFIX}EpochCompare", **compare, seed=len(outcomes))}
    outcomes.append(outcome(server, {**graph, "show": node("PreviewImage", images=["tried", 0])}, lines))


@pytest.fixture(scope="module")
def trained(server: Server) -> tuple[Graph, RunFolder]:
    """A graph that trains, and its run, which saved a LoRA at a checkpoint."""
    training = train_settings(name="fuzzed", checkpoint=TINY, max_steps=1, checkpoint_every=1, validate_every=0)
    graph: Graph = {
        "prep": prepare(trigger_word="fuzzed"),
        "train": node(f"{PREFIX}TrainLora", **training, dataset=["prep", 0]),
        "show": node("PreviewAny", source=["train", 0]),
    }
    server.run(graph)
    return graph, RunFolder(next((server.base / "output" / "animelora" / "runs").glob("fuzzed-*")), "fuzzed")


def test_random_logs_are_read_as_far_as_they_are_valid(server: Server, trained: tuple[Graph, RunFolder]) -> None:
    run, outcomes = trained[1], list[str]()
    compare = cheap(server.get("/object_info")[f"{PREFIX}EpochCompare"]) | {"run": run.path.name, "prompts": "x", "lora_strengths": "1"}
    compare |= {name: SOURCES[name.upper()] for name in ("model", "clip", "vae")}
    del compare["seed"]
    examples = MANY if server.thorough else FEW
    settings(SAME, max_examples=examples)(given(data=st.data())(try_log))(server, run, compare, outcomes)
    assert set(outcomes) == {"result"}


@pytest.mark.skipif(os.name == "nt", reason="NOT CHECKED: pipes are POSIX")
def test_pipe_in_place_of_a_log_does_not_block(server: Server, trained: tuple[Graph, RunFolder]) -> None:
    graph, run = trained
    for path in (run.events, run.result):
        path.unlink()
        os.mkfifo(path)
    server.forget()
    with pytest.raises(PromptFailed, match=r"events\.jsonl is a pipe or a device"):
        server.run(graph, 120)
    assert not server.children()
    assert requests.get(f"{server.url}/animelora/runs/{run.path.name}", timeout=30).status_code == 404
