"""The ways in which browser tests show the canvas."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.tools.comfyui import ComfyUI, find_comfyuis

NEWEST = "1.58.1"  # of comfyui-frontend-package
# Without --long a test runs in one rendering: those below with Vue nodes, all others with classic ones.
WITH_VUE = (
    "test_words_are_inserted_into_the_selected_node",
    "test_loras_are_chosen_ordered_and_toggled_in_one_node",
    "test_new_lora_is_in_every_menu_without_a_reload",
    "test_preset_fills_widgets_and_later_changes_win",
    "test_chosen_values_survive_reconnecting_and_pasting",
    "test_epoch_is_picked_from_the_grid",
)
# What other frontends and ComfyUIs repeat of it: how the test's name begins, with the parameters after the look.
REPEATED = {
    "vue": ("test_graph_loads_completely[1 ",),
    "newest frontend": (
        "test_graph_loads_completely[1 ",
        "test_graph_loads_completely[9 ",
        "test_template_browser_shows_and_opens_the_workflows",
    ),
    "older ComfyUI": ("test_template_runs_and_its_image_restores_it[2 ",),
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
        """Whether it is the look in which most tests run: the newest ComfyUI, its own frontend, classic nodes, dark colours."""
        return bool(_FOUND) and self == Look(_FOUND[0])

    def runs(self, test: str) -> bool:
        """Whether a test runs in this look without ``--long``; ``test`` as pytest names it."""
        name = test.replace(f"[{self.id}-", "[").replace(f"[{self.id}]", "")
        if self.first:
            return name not in WITH_VUE or not any(look.vue for look in looks())
        kind = "vue" if self.vue else "newest frontend" if self.front_end else "older ComfyUI"
        return name.startswith(REPEATED[kind]) or (self.vue and name in WITH_VUE)


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
