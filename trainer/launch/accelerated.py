"""accelerate's launcher in the process that trains.

``accelerate launch`` starts even a single process as a child, which imports torch a second time and is waited for, until the training
ends, by a process with torch loaded. For one process all that the launcher does is to prepare its environment, and that it can do for
itself.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def launched(configuration: Path, script: Path, arguments: list[str]) -> bool:
    """Do what ``accelerate launch --config_file configuration script arguments`` does; whether it has started, and waited for, processes.

    False: the configuration asks for one process, and ``os.environ`` is now as accelerate wants it there; the caller goes on as
    that process. What a library reads while it is loaded has to be in the environment before: accelerate has imported torch by now.
    Errors of accelerate, of a started process that failed, too, pass through.
    """
    from accelerate.commands import launch
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    simple, here = launch.simple_launcher, []

    def prepare(args: argparse.Namespace) -> None:
        command, environment = prepare_simple_launcher_cmd_env(args)
        if command[0] != sys.executable:  # an MPI program
            simple(args)
            return
        os.environ.update(environment)
        here.append(True)

    launch.simple_launcher = prepare
    try:
        parser = launch.launch_command_parser()
        launch.launch_command(parser.parse_args(["--config_file", str(configuration), str(script), *arguments]))
    finally:
        launch.simple_launcher = simple
    return not here
