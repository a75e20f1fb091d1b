"""A small Stable Diffusion of our own: drawn portraits, the recipe that trains it, and the demonstration.

The node Demo Pictures draws its portraits with this package. Heavy imports (torch, diffusers) happen inside functions,
so that drawing portraits needs only Pillow and NumPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .run_demo import main as main


def __getattr__(name: str) -> object:
    if name == "main":
        from .run_demo import main

        return main
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
