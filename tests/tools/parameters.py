"""Parameters of tests that run only with ``--long``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def mark_long(values: Iterable[Any], *long: Any) -> list[Any]:
    """``values`` for ``pytest.mark.parametrize``, of which those in ``long`` run only with ``--long``."""
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.long if value in long else ())
        for value in values
    ]
