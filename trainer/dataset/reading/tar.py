"""Read a tar archive in one pass without trusting its headers.

The standard library reads headers of any length into memory: a pax header or a GNU long name of a gigabyte takes 5 MB in a compressed
archive. It also treats a damaged header as the end of the archive, so that later files would be missing without an error.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

MAX_HEADER_BYTES = 1 << 20  # of one member: its pax headers, long names and sparse map together
_STEP = 1 << 20  # bytes to skip at a time


def is_tar(path: Path) -> bool:
    """Whether ``path`` begins like a tar archive, compressed or not."""
    try:
        with _Tar.open(path, "r|*"):
            return True
    except (tarfile.TarError, OSError, EOFError, ValueError):
        return False


def members(path: Path, check: Callable[[], None]) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """Every member with its content, which must be read before the next member; None for links, devices and folders.

    ``check`` is called often and may raise an exception. Raises tarfile.TarError for a damaged archive.
    """
    with _Tar.open(path, "r|*", tarinfo=_Header) as archive:
        archive.limiter.check = check
        while (member := archive.next()) is not None:
            check()
            yield member, archive.extractfile(member) if member.isreg() else None
            archive.members.clear()  # type: ignore[attr-defined]  # otherwise millions of members stay in memory


class _Header(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        try:
            return super().frombuf(buf, encoding, errors)
        except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
            raise  # the end of the archive
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"the header of a file in it is damaged ({error})") from error


class _Tar(tarfile.TarFile):
    """A tar stream whose headers are limited in size."""

    limiter: _Limited

    def __init__(self, name: Any = None, mode: Any = "r", fileobj: Any = None, **options: Any) -> None:
        self.limiter = _Limited(fileobj)
        super().__init__(name, mode, self.limiter, **options)  # type: ignore[arg-type]

    def next(self) -> tarfile.TarInfo | None:
        self.limiter.header_left = MAX_HEADER_BYTES
        try:
            member = super().next()
        finally:
            self.limiter.header_left = None
        # global headers of an archive accumulate, and every later member gets a copy of them
        if sum(len(key) + len(value) for key, value in self.pax_headers.items()) > MAX_HEADER_BYTES:
            raise _too_long()
        return member


class _Limited:
    """A stream that limits the bytes that are read as headers."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.header_left: int | None = None
        self.check: Callable[[], None] = lambda: None

    def read(self, size: int) -> bytes:
        if self.header_left is not None:
            self.header_left -= size
            if self.header_left < 0:
                raise _too_long()
        data: bytes = self._stream.read(size)
        return data

    def seek(self, position: int) -> int:
        """Seek forward by reading. Raises tarfile.StreamError for a seek backward."""
        while (left := position - self.tell()) > 0:
            self.check()
            if not self._stream.read(min(left, _STEP)):
                break
        if position != self.tell():
            raise tarfile.StreamError("seeking backwards is not allowed")
        return self.tell()

    def tell(self) -> int:
        position: int = self._stream.tell()
        return position

    def close(self) -> None:
        self._stream.close()


def _too_long() -> tarfile.ReadError:
    return tarfile.ReadError(f"the header of a file in it is longer than {MAX_HEADER_BYTES >> 20} MB")
