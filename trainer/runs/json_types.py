"""Types of fields in JSON files of ours that pydantic checks."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, StrictFloat


def _parse_non_finite(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value


Number = Annotated[StrictFloat, BeforeValidator(_parse_non_finite)]
"""A float. NaN and infinity, which JSON lacks, are the strings ``nan``, ``inf`` and ``-inf``."""
