"""The ways in which browser tests show the canvas."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.tools.comfyui import ComfyUI, find_comfyuis

NEWEST = "1.58.1"  # of comfyui-frontend-package
GATE = {  # the tests and test files that each further look repeats without --long; the first look runs everything
    "vue": ("test_workflows.py", "test_loras.py", "test_presets.py", "test_panel.py", "test_epoch_is_picked_from_the_grid"),
    "newest frontend": ("test_workflows.py",),
    "older ComfyUI": ("test_template_runs_and_its_image_restores_it",),
}
_FOUND = find_comfyuis()


@dataclass(frozen=True)
class Look:
    """A ComfyUI, a frontend, and how it draws nodes."""

    comfyui: ComfyUI | None
    vue: bool = False
    light: bool = False
    front_end: str = ""  # a version of comfyui-frontend-package other than the one that the ComfyUI pins

    @property
    def id(self) -> str:
        """Part of the test's name."""
        version = self.comfyui.version if self.comfyui else "none"
        served = f" with frontend {self.front_end}" if self.front_end else ""
        return f"{version}{served} {'vue' if self.vue else 'classic'} {'light' if self.light else 'dark'}"

    @property
    def slug(self) -> str:
        """For file names."""
        return re.sub(r"\W+", "_", self.id)

    @property
    def first(self) -> bool:
        """Whether it is the look in which every test runs: the newest ComfyUI, its own frontend, classic nodes, dark colours."""
        return bool(_FOUND) and self == Look(_FOUND[0])

    def repeats(self, file: str, test: str) -> bool:
        """Whether a test runs in this look without ``--long``."""
        kind = "vue" if self.vue else "newest frontend" if self.front_end else "older ComfyUI"
        return self.first or file in GATE[kind] or test in GATE[kind]


def looks() -> list[Look]:
    """Classic and dark on every ComfyUI. On the newest also Vue nodes with light colours, and the newest frontend.

    The frontend of the oldest supported ComfyUI is too old for both.
    """
    if not _FOUND:
        return [Look(None)]
    newest = _FOUND[0]
    if newest.version == "0.3.64":
        return [Look(each) for each in _FOUND]
    return [Look(newest), Look(newest, vue=True, light=True), Look(newest, front_end=NEWEST), *(Look(older) for older in _FOUND[1:])]
