"""The versions of libraries that Anima needs, which are newer than those that the pack needs otherwise."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

from ...core.errors import UserError

_NEEDED = {"diffusers": (0, 39)}  # the first with AnimaTextConditioner


def require_libraries() -> None:
    """Raise UserError when an installed library is too old for this family."""
    for package, needed in _NEEDED.items():
        try:
            installed = version(package)
        except PackageNotFoundError:
            continue  # reported where it is imported
        numbers = tuple(int(number) for number in re.findall(r"\d+", installed)[:2])
        if numbers < needed:
            wanted = ".".join(map(str, needed))
            raise UserError(
                f"Training Anima needs {package} {wanted} or newer; {installed} is installed.",
                f"Update it in the Python that runs ComfyUI: python -m pip install -U {package}",
                kind="dependency",
            )
