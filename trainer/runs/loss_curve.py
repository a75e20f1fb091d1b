"""The loss curve as an image, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..core.files.writing import atomic_path
from .events import Step, Validation

_SMOOTHING = 0.95  # weight of the past in the smoothed line; bias-corrected as in Adam


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving average with bias correction, so that the line starts at the first value."""
    smoothed, average = [], 0.0
    for index, value in enumerate(values, start=1):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * value
        smoothed.append(average / (1 - _SMOOTHING**index))
    return smoothed


def draw_loss_curve(steps: Sequence[Step], path: Path, *, title: str, per_epoch: int = 0, validation: Sequence[Validation] = ()) -> None:
    """Write a PNG of 1024x576 pixels: loss of each step, its smoothed line, validation loss, ends of epochs, learning rate."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.24, 5.76), dpi=100, facecolor="#16181d")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor("#16181d")
    numbers = [step.step for step in steps]
    losses = [step.loss for step in steps]
    for edge in range(per_epoch, numbers[-1] + 1 if numbers and per_epoch else 0, per_epoch or 1):
        axes.axvline(edge, color="#2b2f38", linewidth=1, zorder=0)
    axes.plot(numbers, losses, color="#5d6b82", linewidth=0.8, label="loss", marker="." if len(numbers) < 3 else None)
    axes.plot(numbers, smooth(losses), color="#ff7eb6", linewidth=2, label="smoothed")
    lines = axes.get_lines()[-2:]
    if validation:
        checked, values = [event.step for event in validation], [event.loss for event in validation]
        lines += axes.plot(checked, values, color="#ffd166", linewidth=2, marker="o", markersize=4, label="validation")
    rate = axes.twinx()
    rate.plot(numbers, [step.lr for step in steps], color="#6bd5c1", linewidth=1, linestyle="--", label="learning rate")
    rate.set_ylabel("learning rate", color="#6bd5c1")
    rate.set_ylim(bottom=0)
    axes.set_xlabel("step (lines: ends of epochs)", color="#c8ccd4")
    axes.set_ylabel("loss", color="#c8ccd4")
    axes.set_ylim(bottom=0)
    axes.set_title(title.replace("$", r"\$"), color="#e8eaee")
    for each in (axes, rate):
        each.tick_params(colors="#9aa0ab")
        for spine in each.spines.values():
            spine.set_color("#2b2f38")
    lines += rate.get_lines()
    axes.legend(lines, [str(line.get_label()) for line in lines], facecolor="#1d2027", edgecolor="#2b2f38", labelcolor="#c8ccd4")
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
