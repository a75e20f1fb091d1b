"""The processes on this machine that train a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Living:
    """A process and its command line. It may have ended since."""

    process: psutil.Process
    words: tuple[str, ...]

    @property
    def run(self) -> str:
        """The run folder that it was started for (see trainer/entry.py); empty for other processes."""
        return self.words[self.words.index("--run") + 1] if "--run" in self.words[:-1] else ""


def living() -> list[Living]:
    """All processes of this machine, except zombies."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"]
        if words and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(Living(process, tuple(words)))
    return found


def of_run(run: Path, *, launcher: bool = True) -> list[psutil.Process]:
    """Processes that train the run in a folder. If there are several, the first is the ``launcher``, which only starts the others."""
    return [each.process for each in living() if each.run == str(run) and (launcher or "--accelerate" not in each.words)]
