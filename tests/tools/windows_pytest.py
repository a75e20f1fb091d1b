"""pytest for a portable Python, which looks for modules neither in the current folder nor beside a script. See windows.py.

What Wine does otherwise than Windows is listed in windows_known.json: a test that fails there for such a reason is counted as an expected
failure, with that reason. pytest-xdist starts a new worker when a test ends the process.
"""

from __future__ import annotations

import json
import locale
import os
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KNOWN = Path(__file__).with_name("windows_known.json")


def pytest_report_header() -> str:
    """The code page of redirected output and of files without an encoding."""
    return f"code page: {locale.getpreferredencoding(False)}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that are known to fail under Wine, and skip those that crash the process (``crashes``)."""
    known = json.loads(KNOWN.read_text(encoding="utf-8"))
    for item in items:
        name = item.nodeid.replace("[", "(").replace("]", ")")  # in a pattern, brackets mean sets of characters
        for pattern, reason in known["fails"].items():
            if fnmatchcase(name, pattern):
                item.add_marker(pytest.mark.xfail(reason=f"Wine: {reason}", strict=False))
        for pattern, reason in known["crashes"].items():
            if fnmatchcase(name, pattern):
                item.add_marker(pytest.mark.skip(reason=f"Wine: {reason}"))


def main() -> int:
    """Run the tests of the pack, in two processes beside this one."""
    os.chdir(ROOT)
    # portable Pythons look into ComfyUI's folder, which has a package "tests", too
    sys.path[:] = [str(ROOT), *(entry for entry in sys.path if not (Path(entry) / "comfy").is_dir())]
    options = ["-p", "no:cacheprovider", "-p", "tests.tools.windows_pytest", "-n", "2", "--dist", "loadscope", "--no-loadscope-reorder"]
    return int(pytest.main([*options, *sys.argv[1:]]))


if __name__ == "__main__":
    sys.exit(main())
