"""Processes that are killed at random points lose nothing: the same work done again ends with the same bytes and leaves nothing over.

Each kind of work is killed once; with ``--long`` 300 kills. ``python -m tests.tools.random_kills`` runs them by themselves.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="NOT CHECKED: the processes are forks")
def test_work_killed_at_any_point_ends_with_the_same_bytes_when_repeated(tmp_path: Path, long_form: bool) -> None:
    command = [sys.executable, "-m", "tests.tools.random_kills", "--kills", "300" if long_form else "12"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=7200 if long_form else 1200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
