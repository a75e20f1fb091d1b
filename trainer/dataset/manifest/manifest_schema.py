"""The schema of a manifest. Datasets may come from other people, so type and range of every field are checked."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter

from ...config.prepare_sections import TrainingHints

MAX_SIDE = 1 << 20  # pixels
MAX_REPEATS = 10**10  # five digits of a kohya folder times the limit of the setting


def safe_path(name: str) -> str:
    """``name``, a path below the dataset's folder with forward slashes. Raises ValueError for a path that leads out of it."""
    if not isinstance(name, str) or not name or "\\" in name or ":" in name or "\x00" in name:
        raise ValueError(f"bad file name {name!r}")
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError(f"bad file name {name!r}")
    return name


Path = Annotated[str, AfterValidator(safe_path)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Offset = Annotated[int, Field(ge=0, le=MAX_SIDE)]


class _Checked(BaseModel):
    # unknown keys come from newer versions
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


class ManifestRow(_Checked):
    """One line of ``manifest.jsonl``, with the fields of ``Item`` and ``Row`` in items.py."""

    file: Path
    sha256: Sha256
    caption: str
    width: Side
    height: Side
    original_size: tuple[Side, Side]
    crop_top_left: tuple[Offset, Offset]
    repeats: Annotated[int, Field(ge=1, le=MAX_REPEATS)]
    mask: Path | None
    is_regularisation: bool
    weight: Annotated[float, Field(ge=0, le=100)]
    crop_right: Offset | None = None
    mask_sha256: str = ""
    bytes: Annotated[int, Field(ge=0)] = 0
    source: str = ""
    source_sha256: str = ""
    source_format: str = ""
    caption_from: str = ""
    steps: tuple[str, ...] = ()


class ManifestHeader(_Checked):
    """The fields of ``manifest.json`` that are read."""

    name: str
    trigger: str
    class_description: str = Field(alias="class")
    resolution: Annotated[int, Field(ge=1, le=MAX_SIDE)]
    training: TrainingHints
    rows_sha256: Sha256
    settings: dict[str, Any] = {}


_ROW = TypeAdapter(ManifestRow)
_ROWS = TypeAdapter(list[ManifestRow])


def parse_rows(data: bytes) -> list[ManifestRow]:
    """The rows of a whole ``manifest.jsonl``. Raises pydantic's ValidationError, whose locations begin with the row number from 0."""
    return _ROWS.validate_json(b"[" + b",".join(data.splitlines()) + b"]")


def parse_row(line: str | bytes) -> ManifestRow:
    """One row. Raises pydantic's ValidationError."""
    return _ROW.validate_json(line)
