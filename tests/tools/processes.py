"""Which processes of this machine train a run, seen from outside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Living:
    """A process and its command line as it was when looked at: a moment later it may have ended."""

    process: psutil.Process
    words: tuple[str, ...]

    @property
    def run(self) -> str:
        """The folder of the run that it was started for (see trainer/entry.py); empty for every other process."""
        return self.words[self.words.index("--run") + 1] if "--run" in self.words[:-1] else ""


def living() -> list[Living]:
    """All processes of this machine but those that ended and wait for their parent to notice."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"]
        if words and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(Living(process, tuple(words)))
    return found


def of_run(run: Path, *, launcher: bool = True) -> list[psutil.Process]:
    """Living processes that were started for the run in that folder; where several train, the first only starts them: the ``launcher``."""
    return [each.process for each in living() if each.run == str(run) and (launcher or "--accelerate" not in each.words)]
