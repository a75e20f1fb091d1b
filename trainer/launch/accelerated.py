"""accelerate's launcher, run in the process that trains.

``accelerate launch`` starts even a single process as a child. That imports torch twice, and the launcher stays in memory with torch loaded
until the training ends. For one process all that the launcher does is to set environment variables, which can be done in place.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def launched(configuration: Path, script: Path, arguments: list[str]) -> bool:
    """Do what ``accelerate launch --config_file configuration script arguments`` does. True if it started processes and they have ended.

    False if the configuration asks for one process: ``os.environ`` is then as accelerate sets it for that process, and the caller continues
    as it. Variables that libraries read at import must be set earlier, as accelerate has imported torch by now. Raises what accelerate
    raises, for a started process that failed, too.
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
