"""A wandb that remembers what it is given."""

from __future__ import annotations

import types
from importlib.machinery import ModuleSpec
from typing import Any


class FakeWandb(types.ModuleType):
    """What the trainer uses of wandb, remembered."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)  # libraries ask for it to see whether there is one
        self.api = types.SimpleNamespace(api_key=None)
        self.started: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []
        self.finished = 0

    def init(self, **settings: Any) -> FakeWandb:
        self.started.append(settings)
        return self

    def define_metric(self, *_: object, **__: object) -> None:
        pass

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.finished += 1
