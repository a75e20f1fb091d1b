"""Names and paths: which names are valid everywhere, and where a path leads."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePath

from ..errors import UserError

# Windows refuses these as file names whatever their extension (learn.microsoft.com, "Naming Files"); it reads ¹, ² and ³ as digits.
_RESERVED = {"con", "prn", "aux", "nul", "conin$", "conout$", *(f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³")}
_WINDOWS_PATH = 259  # characters of a path, MAX_PATH without its end mark
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*]+')


def safe_name(text: str, *, fallback: str = "untitled", limit: int = 100) -> str:
    """A single file or folder name made from ``text``: valid on Linux and Windows, at most ``limit`` characters.

    Letters of any script, spaces and quotes survive; separators, control characters and what Windows forbids become ``_``.
    Never empty, never ``.`` or ``..``, never longer than 255 bytes in UTF-8.
    """
    name = _FORBIDDEN.sub("_", unicodedata.normalize("NFC", text)).strip(" .")[:limit].strip(" .")
    while len(name.encode("utf-8", "replace")) > 200:
        name = name[:-1]
    name = name.encode("utf-8", "ignore").decode("utf-8").strip(" .")
    if not name:
        return fallback
    return f"_{name}" if name.split(".")[0].rstrip().lower() in _RESERVED else name


def require_short_path(path: PurePath, *, limited: bool | None = None) -> None:
    """Refuse ``path`` where Windows could not create it. ``limited``: whether paths have Windows' old limit; None asks the system.

    Counted as Windows counts, in UTF-16. Raises UserError.
    """
    length = len(str(path).encode("utf-16-le", "surrogatepass")) // 2
    if length > _WINDOWS_PATH and (_has_short_paths() if limited is None else limited):
        raise UserError(
            f"The path {path} would have {length} characters; Windows allows {_WINDOWS_PATH}.",
            f"Choose names that are {length - _WINDOWS_PATH} characters shorter, move ComfyUI nearer to the drive's root, "
            "or switch on long paths in Windows (LongPathsEnabled).",
            kind="path",
        )


def _has_short_paths() -> bool:
    if sys.platform == "win32":
        import ctypes

        enabled = getattr(ctypes.WinDLL("ntdll"), "RtlAreLongPathsEnabled", None)  # from Windows 10 1607 on
        return enabled is None or not enabled()
    return False


def resolve_below(path: str | Path, roots: Sequence[Path], *, what: str = "path") -> Path:
    """The real path of ``path`` (relative ones are tried below each root), which must lie below one of ``roots``.

    Symbolic links are followed before the check. Raises UserError when it does not exist or lies elsewhere.
    """
    text = str(path)
    if "\x00" in text:
        raise UserError(f"The {what} contains a NUL character.", "Type the name again.", kind="path")
    real_roots = [root.resolve() for root in roots]
    asked = Path(text)
    candidates = [asked] if asked.is_absolute() else [root / asked for root in real_roots]
    outside = any(on_another_machine(candidate, real_roots) for candidate in candidates)
    if outside:  # not even looked at
        candidates = []
    for candidate in candidates:
        try:
            real = candidate.resolve()
            exists = real.exists()
        except (OSError, RuntimeError, ValueError):  # too long a name, a loop of links
            continue
        if not any(real == root or root in real.parents for root in real_roots):
            outside = outside or exists
            continue
        if exists:
            return real
    listing = ", ".join(str(root) for root in real_roots)
    if outside:
        raise UserError(
            f"The {what} {text!r} lies outside the folders this may read.",
            f"Move it below one of: {listing}; or register its folder in extra_model_paths.yaml.",
            kind="path",
        )
    raise UserError(f"The {what} {text!r} was not found.", f"Looked below: {listing}.", kind="path")


def on_another_machine(path: PurePath, roots: Sequence[PurePath]) -> bool:
    r"""Whether ``path`` is a network drive (``\\server\share``) or device of Windows (``\\.\…``, ``\\?\…``) that none of ``roots`` lies on.

    Windows sends the user's name and a hash of the password to a server that is only asked whether a file is there.
    """
    drive = path.drive.replace("/", "\\").lower()
    return drive.startswith("\\\\") and drive not in [root.drive.replace("/", "\\").lower() for root in roots]


def expand_home(path: str) -> Path:
    """``path`` with a leading ``~`` or ``~name`` replaced by that user's home folder. Raises UserError when there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        user = path.replace("\\", "/").split("/")[0]
        raise UserError(
            f"{path!r} names the home folder of a user that this machine does not have: {user}.",
            f"Write the whole path, or ./{path} for a folder of that name.",
            kind="path",
        ) from error
