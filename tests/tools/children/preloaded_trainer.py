"""A trainer whose libraries are already loaded, so that a test can afford fifty runs.

``serve SOCKET`` imports what a training child imports and waits. The pack's launcher starts ``client SOCKET … ENTRY --run FOLDER
--watch-stdin`` in place of the interpreter: it passes its standard streams and environment on, a fork of the server trains with them
exactly as ``trainer/entry.py`` does, and the client exits with its status. This saves only the seconds of the imports. POSIX only.

Signals sent to the child reach the client: when it is killed or suspended, so is the fork a moment later. Tests of exact timing and of
other signals need a real child.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PRELOADED = ("trainer.training.run", "accelerate", "matplotlib.pyplot", "psutil", "torch.optim.adamw")


@contextmanager
def preloaded(python: Path, folder: Path) -> Iterator[Path]:
    """A program that starts training children in place of ``python``, with the libraries loaded. ``folder`` is for its files."""
    if os.name == "nt":
        yield python
        return
    program, place = client_program(python, folder)
    server = subprocess.Popen([str(python), __file__, "serve", str(place)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        while not place.exists():
            assert server.poll() is None, "the preloaded trainer ended"
            time.sleep(0.1)
        yield program
    finally:
        server.kill()
        server.wait()


def client_program(python: Path, folder: Path) -> tuple[Path, Path]:
    """A program for ``preloaded`` to yield, and the socket at which its server has to listen."""
    program, place = folder / "python", folder / "s"
    program.write_text(f'#!/bin/sh\nexec "{python}" -S -E "{Path(__file__).resolve()}" client "{place}" "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    return program, place


def serve(path: str) -> None:
    """Import, listen, and fork for every client. Ends when it is killed."""
    import importlib

    sys.path.insert(0, str(ROOT))
    for name in PRELOADED:
        importlib.import_module(name)
    from trainer.core.library_imports import import_models, import_text_models

    import_models()
    import_text_models()
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel  # noqa: F401 (they are lazy: the use imports them)
    from diffusers.loaders import single_file_model, single_file_utils  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no one waits for the forks below
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        while True:
            connection, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                _handle(connection)
            connection.close()


def _handle(connection: socket.socket) -> None:
    """Train in a fork and send the client its status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    words, streams, _, _ = socket.recv_fds(connection, 65_536, 3)
    arguments, environment = json.loads(words.decode())
    child = os.fork()
    if child == 0:
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = arguments
        os.chdir(arguments[arguments.index("--run") + 1])
        from trainer.entry import main

        os._exit(main())
    for stream in streams:
        os.close(stream)
    peer = _peer(connection)
    asleep = False
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if select.select([connection], [], [], 0.02)[0]:  # a client sends nothing more: it was killed, which closed the connection
            os.kill(child, signal.SIGKILL)
        elif _suspended(peer) != asleep:
            asleep = not asleep
            os.kill(child, signal.SIGSTOP if asleep else signal.SIGCONT)
    with suppress(OSError):
        connection.sendall(bytes([os.waitstatus_to_exitcode(ended[1]) & 0xFF]))
    os._exit(0)


def _peer(connection: socket.socket) -> int:
    """The id of the process at the other end; 0 if the system does not provide it."""
    if not hasattr(socket, "SO_PEERCRED"):
        return 0
    process, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(process)


def _suspended(process: int) -> bool:
    import psutil  # the client runs without site-packages

    try:
        return process != 0 and psutil.Process(process).status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return False


def client(path: str, arguments: list[str]) -> int:
    """Pass the streams and arguments on; the status of the run."""
    entry = next(index for index, word in enumerate(arguments) if word.endswith("entry.py"))
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [json.dumps([arguments[entry:], dict(os.environ)]).encode()], [0, 1, 2])
        answer = connection.recv(1)
    return answer[0] if answer else 1


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    sys.exit(client(sys.argv[2], sys.argv[3:]))
