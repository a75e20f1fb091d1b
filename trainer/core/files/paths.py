"""Safe file names, and checks of where a path leads."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePath

from ..errors import UserError

# Windows refuses these as file names whatever their extension (learn.microsoft.com, "Naming Files"); it reads ¹, ² and ³ as digits.
_RESERVED = {"con", "prn", "aux", "nul", "conin$", "conout$", *(f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³")}
_WINDOWS_PATH = 259  # characters, MAX_PATH without the terminating NUL
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*]+')


def safe_name(text: str, *, fallback: str = "untitled", limit: int = 100) -> str:
    """A file or folder name made from ``text`` that is valid on Linux and Windows and has at most ``limit`` characters.

    Letters of any script, spaces and quotes are kept. Separators, control characters and characters that Windows forbids become ``_``.
    The name is never empty, ``.`` or ``..``, and never longer than 255 bytes in UTF-8.
    """
    name = _FORBIDDEN.sub("_", unicodedata.normalize("NFC", text)).strip(" .")[:limit].strip(" .")
    while len(name.encode("utf-8", "replace")) > 200:
        name = name[:-1]
    name = name.encode("utf-8", "ignore").decode("utf-8").strip(" .")
    if not name:
        return fallback
    return f"_{name}" if name.split(".")[0].rstrip().lower() in _RESERVED else name


def require_short_path(path: PurePath, *, limited: bool | None = None) -> None:
    """Raise UserError if ``path`` is too long for Windows, which counts in UTF-16.

    ``limited``: whether Windows' old limit applies; None asks the system.
    """
    length = len(str(path).encode("utf-16-le", "surrogatepass")) // 2
    if length > _WINDOWS_PATH and (_has_short_paths() if limited is None else limited):
        raise UserError(
            f"The path {path} would have {length} characters; Windows allows {_WINDOWS_PATH}.",
            f"Choose names that are {length - _WINDOWS_PATH} characters shorter, move ComfyUI closer to the root of the drive, "
            "or enable long paths in Windows (LongPathsEnabled).",
            kind="path",
        )


def _has_short_paths() -> bool:
    if sys.platform == "win32":
        import ctypes

        enabled = getattr(ctypes.WinDLL("ntdll"), "RtlAreLongPathsEnabled", None)  # since Windows 10 1607
        return enabled is None or not enabled()
    return False


def resolve_below(path: str | Path, roots: Sequence[Path], *, what: str = "path") -> Path:
    """Resolve ``path``, a relative one below each of ``roots`` in turn, and require that it lies below one of them.

    Symbolic links are resolved before the check. Raises UserError if the path does not exist or lies elsewhere.
    """
    text = str(path)
    if "\x00" in text:
        raise UserError(f"The {what} contains a NUL character.", "Type the name again.", kind="path")
    real_roots = [root.resolve() for root in roots]
    given = Path(text)
    candidates = [given] if given.is_absolute() else [root / given for root in real_roots]
    outside = any(on_another_machine(candidate, real_roots) for candidate in candidates)
    if outside:  # never accessed
        candidates = []
    for candidate in candidates:
        try:
            real = candidate.resolve()
            exists = real.exists()
        except (OSError, RuntimeError, ValueError):  # a name that is too long, a loop of links
            continue
        if not any(real == root or root in real.parents for root in real_roots):
            outside = outside or exists
            continue
        if exists:
            return real
    listing = ", ".join(str(root) for root in real_roots)
    if outside:
        raise UserError(
            f"The {what} {text!r} lies outside the allowed folders.",
            f"Move it into one of these folders: {listing}; or register its folder in extra_model_paths.yaml.",
            kind="path",
        )
    raise UserError(f"The {what} {text!r} was not found.", f"Searched in: {listing}.", kind="path")


def on_another_machine(path: PurePath, roots: Sequence[PurePath]) -> bool:
    r"""Whether ``path`` is on a network drive (``\\server\share``) or device of Windows (``\\.\…``, ``\\?\…``), but none of ``roots`` is.

    Even to check whether a file exists, Windows sends the user's name and a hash of the password to the server.
    """
    drive = path.drive.replace("/", "\\").lower()
    return drive.startswith("\\\\") and drive not in [root.drive.replace("/", "\\").lower() for root in roots]


def expand_home(path: str) -> Path:
    """``path`` with a leading ``~`` or ``~name`` replaced by the user's home folder. Raises UserError if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        user = path.replace("\\", "/").split("/")[0]
        raise UserError(
            f"{path!r} refers to the home folder of a user that does not exist on this machine: {user}.",
            f"Use an absolute path, or ./{path} for a folder of that name.",
            kind="path",
        ) from error
