"""Events reach only the node they are about, not nodes with the same id in another workflow or subgraph."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Route

from tests.browser.frontend import Frontend
from tests.browser.panel import TITLED, copied, node_id, opened, run_on_disk, wrap
from tests.browser.screens import pack_errors, send_event
from tests.server.comfy_server import Server
from tests.tools.workflows.parts import LORA_FILE

# Adds Load LoRA nodes by title; those named "linked…" are linked to Train LoRA.
_ADD = """(titles) => titles.map((title) => {
  const train = window.app.graph._nodes.find((node) => node.type === "AnimeLoRA_TrainLora");
  const load = window.LiteGraph.createNode("AnimeLoRA_LoadLora");
  load.title = title;
  load.pos = [train.pos[0] + 900, 400 * window.app.graph._nodes.length];
  window.app.graph.add(load);
  if (title.startsWith("linked")) train.connect(0, load, load.inputs.findIndex((input) => input.name === "lora"));
  return String(load.id);
})"""


def shown_lora(frontend: Frontend, title: str) -> str | None:
    """The LoRA that a linked Load LoRA shows."""
    found = frontend.page.evaluate(f"(title) => ({TITLED})(title).properties.animelora_lora ?? null", title)
    return None if found is None else str(found)


def shown_run(frontend: Frontend, title: str) -> str | None:
    """The run that the panel of a Train LoRA shows."""
    found = frontend.page.evaluate(f"(title) => ({TITLED})(title).animeloraPanel.run", title)
    return None if found is None else str(found)


@contextmanager
def finished(frontend: Frontend, runs: dict[str, dict[str, str]]) -> Iterator[None]:
    """Let the server report these runs as finished."""

    def answer(route: Route) -> None:
        route.fulfill(body=json.dumps(runs), content_type="application/json")

    frontend.page.route("**/animelora/finished", answer)
    yield
    frontend.page.unroute("**/animelora/finished")


def test_unlinked_load_lora_ignores_events_of_other_workflows(frontend: Frontend, canvas_server: Server) -> None:
    opened(frontend, canvas_server, "others")
    linked, alone = frontend.page.evaluate(_ADD, ["linked one", "alone"])
    send_event(frontend, "animelora.lora", node_id=alone, name=LORA_FILE)
    assert shown_lora(frontend, "alone") is None
    send_event(frontend, "animelora.lora", node_id=linked, name=LORA_FILE)
    assert shown_lora(frontend, "linked one") == LORA_FILE


def test_load_lora_in_a_subgraph_is_addressed_by_its_whole_path(frontend: Frontend, canvas_server: Server) -> None:
    before = len(frontend.problems)
    opened(frontend, canvas_server, "inside")
    frontend.page.evaluate(_ADD, ["linked one", "linked two"])
    one, two = wrap(frontend, "linked one"), wrap(frontend, "linked two")
    queued = frontend.prompt()
    for path in (one, two):
        assert queued[":".join(path)]["class_type"] == "AnimeLoRA_LoadLora", "the frontend names nodes in subgraphs differently"
    for elsewhere in (one[1], f"{two[0]}:7:{one[1]}", f"9999:{one[1]}"):
        send_event(frontend, "animelora.lora", node_id=elsewhere, name=LORA_FILE)
    assert (shown_lora(frontend, "linked one"), shown_lora(frontend, "linked two")) == (None, None)
    send_event(frontend, "animelora.lora", node_id=":".join(one), name=LORA_FILE)
    assert (shown_lora(frontend, "linked one"), shown_lora(frontend, "linked two")) == (LORA_FILE, None)
    assert pack_errors(frontend.problems[before:]) == []


def test_cached_training_in_a_subgraph_shows_its_run(frontend: Frontend, canvas_server: Server, request: Any) -> None:
    name = f"cached_{frontend_slug(request)}"
    run = run_on_disk(canvas_server, name, steps=3).name
    opened(frontend, canvas_server, name)
    around, inside = wrap(frontend, name)
    entry = {"run": run, "name": name}
    with finished(frontend, {inside: entry, f"9999:{inside}": entry, f"{around}:{inside}": entry}):
        send_event(frontend, "execution_cached", nodes=[inside, f"9999:{inside}"], prompt_id="other")
        frontend.page.wait_for_timeout(500)
        assert shown_run(frontend, name) is None
        send_event(frontend, "execution_cached", nodes=[f"{around}:{inside}"], prompt_id="this")
        frontend.page.wait_for_function(f"(title) => ({TITLED})(title).animeloraPanel.run !== null", arg=name)
    assert shown_run(frontend, name) == run


def test_run_with_other_settings_is_not_shown(frontend: Frontend, canvas_server: Server, request: Any) -> None:
    name = f"owned_{frontend_slug(request)}"
    run = run_on_disk(canvas_server, name, steps=3).name
    opened(frontend, canvas_server, name)
    about = {"node_id": node_id(frontend, name), "run": run, "name": name}
    send_event(frontend, "animelora.train", event="run", settings={"name": name, "checkpoint": "another.safetensors"}, **about)
    assert shown_run(frontend, name) is None
    send_event(frontend, "animelora.train", event="run", settings={"name": name, "epochs": 1}, **about)
    assert shown_run(frontend, name) == run


@pytest.mark.parametrize("kept", [0, 2])
def test_stopped_run_shows_where_it_resumes(frontend: Frontend, canvas_server: Server, request: Any, kept: int) -> None:
    """The last logged step need not be the last saved one."""
    name = f"cut_{kept}_{frontend_slug(request)}"
    folder = run_on_disk(canvas_server, name, steps=5, kept=kept)
    message = "stopped at step 2; queue again to resume" if kept else "the next run starts from the beginning"
    status = f"({TITLED})('{name}').animeloraPanel.status.textContent"
    opened(frontend, canvas_server, name)
    about = {"node_id": node_id(frontend, name), "run": folder.name, "name": name}
    send_event(frontend, "animelora.train", event="run", **about)
    frontend.page.wait_for_function(f"() => {status}.includes('step 5 of 9')")
    send_event(frontend, "animelora.train", event="phase", phase="saving", done=5, total=9, **about)
    assert "saving the state" in str(frontend.page.evaluate(f"() => {status}"))
    send_event(frontend, "animelora.train", event="stopped", step=kept, path="", **about)
    assert message in str(frontend.page.evaluate(f"() => {status}"))
    send_event(frontend, "animelora.train", event="phase", phase="saving", done=6, total=9, **about)  # arrives late
    assert message in str(frontend.page.evaluate(f"() => {status}"))
    send_event(frontend, "animelora.train", event="end", **about)  # the panel reads the log again, which lacks this event
    frontend.page.wait_for_timeout(500)
    assert message in str(frontend.page.evaluate(f"() => {status}"))
    assert copied(frontend, "Copy folder") == str(folder.resolve())


def frontend_slug(request: pytest.FixtureRequest) -> str:
    """A suffix that separates the runs of looks that share a server."""
    return str(request.getfixturevalue("look").slug)
