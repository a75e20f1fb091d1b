"""The configuration file with which accelerate's launcher starts a run's processes."""

from __future__ import annotations

from pathlib import Path

from ..config.run_config import RunConfig
from ..core import devices
from ..core.errors import UserError
from ..core.files.text_file import read_text
from ..core.messages import Message, Setting

# MULTI_GPU also starts processes on a CPU: entry.py chooses the device, and accelerate then the backend (gloo). accelerate's own
# MULTI_CPU would start a single one.
_TEMPLATE = """\
compute_environment: LOCAL_MACHINE
distributed_type: '{kind}'
num_machines: 1
machine_rank: 0
num_processes: {processes}
main_process_port: 0
mixed_precision: 'no'
use_cpu: {use_cpu}
"""


def process_count(config: RunConfig) -> int:
    """How many processes train ``config`` on this machine."""
    return max(1, config.training.processes or devices.gpu_count())


def accelerate_config(config: RunConfig, given: Path | None = None) -> str:
    """The text of the configuration: that of the file ``given``, or one for this machine.

    Raises UserError for a file that cannot be read, and for more processes than there are GPUs.
    """
    if given is not None:
        return read_text(given, "accelerate configuration")
    processes = process_count(config)
    if config.training.device != "cpu" and processes > max(1, devices.gpu_count()):
        raise UserError(
            Message(Setting("training.processes"), f" is {processes}, but this machine has {devices.gpu_count()} GPUs."),
            "Use 0 for all GPUs. Training on several machines needs an accelerate configuration, which only the command line accepts.",
            kind="device",
        )
    kind = "MULTI_GPU" if processes > 1 else "NO"
    return _TEMPLATE.format(kind=kind, processes=processes, use_cpu="true" if config.training.device == "cpu" else "false")
