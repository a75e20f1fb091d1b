"""A real ComfyUI with the pack in its custom_nodes, driven through its HTTP and WebSocket interfaces as the browser does."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests
import websocket

ROOT = Path(__file__).resolve().parents[2]
_START_SECONDS = 600
_PATIENCE = 600  # seconds that a busy machine may need
_PACK = ("__init__.py", "nodes", "trainer", "demo", "web", "locales", "pyproject.toml")


class PromptFailed(Exception):
    """A prompt failed. ``message`` is what the user reads, ``node`` the class of the node that failed."""

    def __init__(self, node: str, message: str) -> None:
        super().__init__(f"{node}: {message}")
        self.node = node
        self.message = message


class PromptRefused(Exception):
    """The server rejected the prompt; ``errors`` is its answer."""

    def __init__(self, errors: dict[str, Any]) -> None:
        super().__init__(json.dumps(errors)[:2000])
        self.errors = errors


def until(is_so: Callable[[], bool], what: str) -> None:
    """Wait until ``is_so`` holds; fail with ``what`` if it never does."""
    end = time.monotonic() + _PATIENCE
    while not is_so():
        assert time.monotonic() < end, what
        time.sleep(0.05)


@dataclass
class Server:
    """A running server. Graphs are plain dictionaries in ComfyUI's API format."""

    comfyui: Path
    python: Path
    base: Path
    port: int
    process: subprocess.Popen[bytes]
    log_path: Path
    thorough: bool = False  # whether tests train on the full-size checkpoint, and try every harmful file and many random values here
    client_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    messages: list[dict[str, Any]] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    previews: int = 0
    core_texts: int = 0

    @property
    def url(self) -> str:
        """The address it listens on."""
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> Any:
        """JSON from a GET route."""
        answer = requests.get(f"{self.url}{path}", timeout=30)
        answer.raise_for_status()
        return answer.json()

    def queue(self, graph: dict[str, Any]) -> str:
        """Queue a graph and return its prompt id. Raises PromptRefused."""
        answer = requests.post(f"{self.url}/prompt", json={"prompt": graph, "client_id": self.client_id}, timeout=30)
        body = answer.json()
        # if one output node is valid, the server accepts the prompt, reports the invalid ones and drops them
        if answer.status_code != 200 or body.get("node_errors"):
            raise PromptRefused(body)
        return str(body["prompt_id"])

    def wait(self, prompt_id: str, seconds: float = 900) -> dict[str, Any]:
        """Wait for a prompt to end, successfully or not; its history entry."""
        end, pause = time.monotonic() + seconds, 0.005  # most test prompts end at once
        while time.monotonic() < end:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return dict(history[prompt_id])
            assert self.process.poll() is None, f"the server ended:\n{self.log()[-3000:]}"
            time.sleep(pause)
            pause = min(0.1, 1.5 * pause)
        raise TimeoutError(f"the prompt did not end in {seconds} s:\n{self.log()[-3000:]}")

    def run(self, graph: dict[str, Any], seconds: float = 900) -> dict[str, Any]:
        """Queue, wait, and return the outputs by node id. Raises PromptFailed."""
        prompt_id = self.queue(graph)
        entry = self.wait(prompt_id, seconds)
        until(lambda: self._has_heard_the_end(prompt_id), "the web socket is silent")
        for kind, data in entry["status"]["messages"]:
            if kind == "execution_error":
                raise PromptFailed(data["node_type"], data["exception_message"])
            assert kind != "execution_interrupted", "the prompt was interrupted"
        return dict(entry["outputs"])

    def _has_heard_the_end(self, prompt_id: str) -> bool:
        """Whether the web socket has delivered the end of a prompt, and therefore all its texts. On a busy machine this takes a moment."""
        ends = ("execution_success", "execution_error", "execution_interrupted")
        return any(message["type"] in ends and message["data"].get("prompt_id") == prompt_id for message in self.messages[-200:])

    def images(self, outputs: dict[str, Any], node: str) -> list[Path]:
        """Files that a SaveImage node wrote."""
        return [self.base / "output" / entry["subfolder"] / entry["filename"] for entry in outputs[node]["images"]]

    def wait_for_text(self, words: str, seconds: float = 30) -> None:
        """Wait until the last text that a node showed contains ``words``; it can arrive a moment after the end of the prompt."""
        end = time.monotonic() + seconds
        while not self.texts or words not in self.texts[-1][1]:
            assert time.monotonic() < end, self.texts[-3:]
            time.sleep(0.05)

    def forget(self) -> None:
        """Empty the cache of node results, so that the next prompt executes every node."""
        requests.post(f"{self.url}/free", json={"unload_models": True, "free_memory": True}, timeout=30)
        # The worker reads the request after a prompt, or seconds later if it is cleaning up
        empty = {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}}
        self.run({"empty": empty, "show": {"class_type": "PreviewImage", "inputs": {"images": ["empty", 0]}}})

    def interrupt(self) -> None:
        """What the Cancel button does."""
        requests.post(f"{self.url}/interrupt", timeout=30)

    def clear_queue(self) -> None:
        """Remove what waits, interrupt what runs, and wait until nothing does."""
        requests.post(f"{self.url}/queue", json={"clear": True}, timeout=30)

        def is_idle() -> bool:
            queue = self.get("/queue")
            if not queue["queue_running"] and not queue["queue_pending"]:
                return True
            self.interrupt()
            time.sleep(0.3)
            return False

        until(is_idle, "the prompt did not end")

    def executed(self, graph: dict[str, Any]) -> set[str]:
        """Run a graph; the ids of its nodes that ComfyUI executed rather than took from its cache."""
        messages = self.wait(self.queue(graph))["status"]["messages"]
        assert [data["exception_message"] for kind, data in messages if kind == "execution_error"] == []
        (cached,) = [data["nodes"] for kind, data in messages if kind == "execution_cached"]
        return set(graph) - set(cached)

    def log(self) -> str:
        """The server's output so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def children(self) -> list[psutil.Process]:
        """The server's child processes, recursively."""
        found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return found

    def listen(self) -> None:
        """Collect what the server sends to the browser, on a thread that ends with the server."""
        sock = websocket.create_connection(f"ws://127.0.0.1:{self.port}/ws?clientId={self.client_id}", timeout=600)
        threading.Thread(target=self._collect, args=(sock,), daemon=True).start()

    def _collect(self, sock: websocket.WebSocket) -> None:
        while True:
            try:
                data = sock.recv()
            except (OSError, websocket.WebSocketException):
                return
            if isinstance(data, str):
                if data:
                    self._note(json.loads(data))
            elif int.from_bytes(data[:4], "big") == 3:  # TEXT: core's progress text, which nodes of the pack do not use
                self.core_texts += 1
            else:
                self.previews += 1

    def _note(self, message: dict[str, Any]) -> None:
        self.messages.append(message)
        data = message.get("data", {})
        if message["type"] == "animelora.text":
            self.texts.append((data["node_id"], data["text"]))
        elif message["type"] == "animelora.train" and data.get("summary"):
            self.texts.append((data["node_id"], data["summary"]))

    def stop(self) -> None:
        """Kill the server and its child processes."""
        family = [*self.children(), psutil.Process(self.process.pid)] if self.process.poll() is None else []
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait()


def start(
    comfyui: Path,
    python: Path,
    base: Path,
    *,
    front_end: Path | None = None,
    output: Path | None = None,
    children: Path | None = None,
    flags: Sequence[str] = (),
) -> Server:
    """Start the ComfyUI in ``comfyui`` with ``base`` as its base directory and wait until it answers.

    ``output`` is the folder of its results where that is not ``base/output``, ``children`` the program that training children are
    started with where that is not ``python``. ``flags`` are the interpreter's.
    """
    for folder in ("input", "output", "user", "models/checkpoints", "models/loras", "custom_nodes"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    install_pack(base / "custom_nodes" / "animelora")
    if children is not None:
        replaced = f"import sys\n\nsys.executable = {str(children)!r}\nNODE_CLASS_MAPPINGS = {{}}\n"
        (base / "custom_nodes" / "short_children.py").write_text(replaced, encoding="utf-8")
    port = free_port()
    log_path = base / "server.log"
    extra = ["--front-end-root", str(front_end)] if front_end else []
    extra += ["--output-directory", str(output)] if output else []
    extra += ["--extra-model-paths-config", str(paths)] if (paths := base / "extra_model_paths.yaml").is_file() else []
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [
                *(str(python), *flags, str(comfyui / "main.py"), "--cpu", "--port", str(port), "--base-directory", str(base)),
                *("--disable-api-nodes", *extra),
            ],
            cwd=comfyui,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"},
        )
    server = Server(comfyui, python, base, port, process, log_path)
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"ComfyUI did not start:\n{server.log()[-4000:]}")
        try:
            server.get("/system_stats")
            server.listen()
            return server
        except requests.RequestException:
            time.sleep(0.3)
    server.stop()
    raise TimeoutError(f"ComfyUI did not answer in {_START_SECONDS} s:\n{server.log()[-4000:]}")


def install_pack(place: Path) -> None:
    """Link the checkout into custom_nodes, or copy it where links are not allowed. Keeps what an earlier start installed."""
    if place.exists():
        return
    with suppress(OSError):
        place.symlink_to(ROOT, target_is_directory=True)
    if not place.exists():  # Windows without developer mode; Wine reports success without creating a link
        place.mkdir()
        for name in _PACK:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                shutil.copy2(source, place / name)


def free_port() -> int:
    """A free port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
