"""The exit status of a process carries its disk error."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from trainer.core.disk_errors import as_disk_error, exit_status_for, from_exit_status


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES])
def test_the_exit_status_carries_the_disk_error(number: int, tmp_path: Path) -> None:
    error = OSError(number, os.strerror(number))
    reported, expected = from_exit_status(exit_status_for(ValueError(), error) or 0, tmp_path), as_disk_error(error, tmp_path)
    assert reported is not None and expected is not None
    assert reported.message.split(" free")[0][:40] == expected.message.split(" free")[0][:40]
    assert exit_status_for(ValueError(), OSError(errno.ENOENT, "")) is None
    assert all(from_exit_status(status, tmp_path) is None for status in (0, 1, 2, 3, 120, 126, 137, -9, -15))
