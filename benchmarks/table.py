"""The table in ``benchmarks/README.md``, with measured and missing rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

README = Path(__file__).resolve().with_name("README.md")
BEGIN, END = "<!-- speed: begin -->", "<!-- speed: end -->"
TRAINERS = ("ours", "kohya", "diffusers")
# the work with stated targets: model, resolution, batch, rank, precision, device, checkpointing
WANTED = [
    ("sd1", 128, 1, 8, "fp32", "cpu", False),
    ("sd1", 128, 1, 8, "bf16", "cpu", False),
    ("sdxl", 256, 1, 16, "bf16", "cpu", False),
    ("anima-4", 256, 1, 16, "bf16", "cpu", False),
    ("sd1", 512, 1, 16, "bf16", "cuda", False),
    ("sd1", 512, 8, 16, "bf16", "cuda", False),
    ("sd1", 512, 1, 16, "bf16", "cuda", True),
    ("sdxl", 1024, 1, 16, "bf16", "cuda", True),
]
COLUMNS = ("Work", "Trainer", "images/s", "s/step", "to first step", "whole run", "GPU GB", "RSS GB", "MFU", "measured")

Shape = tuple[str, int, int, int, str, str, bool]


def shape_of(row: Mapping[str, Any]) -> Shape:
    """The work of a row."""
    work = row["work"]
    return (
        work["model"], work["resolution"], work["batch"], work["rank"], work["precision"], work["device"], work["checkpointing"],
    )  # fmt: skip


def line(cells: Iterable[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def heading(columns: Sequence[str]) -> str:
    """The first two lines of the table."""
    return f"{line(columns)}\n{line(['---'] * len(columns))}"


def render(rows: Iterable[Mapping[str, Any]]) -> str:
    """Markdown: every wanted work with every trainer, measured or not, then all other measurements."""
    measured = list(rows)
    shapes = [*WANTED, *(shape for row in measured if (shape := shape_of(row)) not in WANTED)]
    lines = [heading(COLUMNS)]
    for shape in dict.fromkeys(shapes):
        for trainer in TRAINERS:
            found = [row for row in measured if shape_of(row) == shape and row["trainer"] == trainer]
            lines += [_line(shape, row) for row in found]
            if not found and shape in WANTED and not (trainer == "diffusers" and shape[0].startswith("anima")):  # it has no script for it
                lines.append(f"| {_work(shape)} | {trainer} |" + " |" * 7 + " not measured |")
    machines = dict.fromkeys(f"{row['machine']}, torch {row['torch']}, Python {row['python']}" for row in measured)
    return "\n".join([*lines, "", *(f"- {machine}" for machine in machines)])


def update(results: Path) -> None:
    """Write the table of all ``results`` between the marks in the README."""
    text = README.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    README.write_text(f"{head}{BEGIN}\n\n{render(read(results))}\n\n{END}{tail}", encoding="utf-8")


def read(results: Path) -> list[dict[str, Any]]:
    """All rows that were measured, by file name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]


def _work(shape: Shape) -> str:
    model, resolution, batch, rank, precision, device, checkpointing = shape
    title = {"sd1": "SD 1.5", "sdxl": "SDXL", "anima": "Anima", "anima-4": "Anima with 4 blocks"}[model]
    saving = ", checkpointing" if checkpointing else ""
    return f"{title}, {resolution} px, batch {batch}, rank {rank}, {precision}, {device}{saving}"


def _line(shape: Shape, row: Mapping[str, Any]) -> str:
    name = row["trainer"] + (f" ({row['label']})" if row["label"] else "")
    gpu = "" if row["gpu_gb"] is None else f"{row['gpu_gb']:.2f}"
    cells = [
        _work(shape), name, f"{row['images_per_second']:.3f}", f"{row['step_seconds']:.3f}", f"{row['first_step_seconds']:.0f} s",
        f"{row['total_seconds']:.0f} s", gpu, f"{row['rss_gb']:.2f}", f"{row['mfu']:.2f}", row["date"],
    ]  # fmt: skip
    return line(cells)
