"""Draw a labelled grid of images, whatever they show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from .fonts import Font, font_for

_INK, _PAPER, _RULE = "#1d1d1f", "#ffffff", "#d0d0d5"


@dataclass(frozen=True)
class Block:
    """All images of one prompt: ``rows[row][column]``, all of the same size."""

    title: str
    rows: Sequence[Sequence[Image.Image]]


@dataclass(frozen=True)
class Layout:
    """Sizes in pixels, derived from the size of a cell."""

    cell_width: int
    cell_height: int
    margin: int
    label_width: int
    label_height: int

    def column(self, index: int) -> int:
        """Left edge of a column of images."""
        return self.margin + self.label_width + index * (self.cell_width + self.margin)


def draw(
    blocks: Sequence[Block], row_labels: Sequence[str], column_labels: Sequence[str], *, source: Image.Image | None = None
) -> Image.Image:
    """One image with all blocks below each other, each with its prompt and labelled rows and columns.

    ``source`` is cells in an extra column before the others, beside the first row.
    """
    first = blocks[0].rows[0][0]
    words = " ".join([*row_labels, *column_labels, *(block.title for block in blocks)])
    font = font_for(words, max(12, min(32, first.width // 18)))
    labels = column_labels if source is None else ["source", *column_labels]
    layout = _layout(first, font, row_labels, labels)
    width = layout.column(len(labels))
    titles = [wrap_title(block.title, font, width - 2 * layout.margin) for block in blocks]
    line = font.line_height
    heights = [
        len(title) * line + layout.margin + layout.label_height + len(block.rows) * (layout.cell_height + layout.margin) + layout.margin
        for title, block in zip(titles, blocks, strict=True)
    ]
    canvas = Image.new("RGB", (width, layout.margin + sum(heights)), _PAPER)
    pen = ImageDraw.Draw(canvas)
    top = layout.margin
    for title, block, height in zip(titles, blocks, heights, strict=True):
        for number, text in enumerate(title):
            pen.text((layout.margin, top + number * line), text, font=font.face, fill=_INK)
        y = top + len(title) * line + layout.margin
        for index, label in enumerate(labels):
            _centred(pen, font, label, layout.column(index) + layout.cell_width // 2, y)
        y += layout.label_height
        for row, (label, images) in enumerate(zip(row_labels, block.rows, strict=True)):
            pen.text((layout.margin, y + layout.cell_height // 2 - line // 2), label, font=font.face, fill=_INK)
            cells = list(images) if source is None else [source if row == 0 else None, *images]
            for index, image in enumerate(cells):
                if image is not None:
                    canvas.paste(_fitted(image, layout), (layout.column(index), y))
            y += layout.cell_height + layout.margin
        top += height
        if block is not blocks[-1]:
            pen.line([(layout.margin, top - layout.margin), (width - layout.margin, top - layout.margin)], fill=_RULE)
    return canvas


def wrap_title(text: str, font: Font, width: int) -> list[str]:
    """``text`` in lines of at most ``width`` pixels, broken at spaces, and within words that are too long for a line."""
    result, current = [], ""
    for word in text.split(" "):
        candidate = f"{current} {word}" if current else word
        if font.width(candidate) <= width:
            current = candidate
            continue
        if current:
            result.append(current)
        current = word
        while font.width(current) > width and len(current) > 1:
            fits = max(1, next(n for n in range(1, len(current) + 1) if font.width(current[:n]) > width) - 1)
            result.append(current[:fits])
            current = current[fits:]
    return [*result, current] if current else result or [""]


def _layout(cell: Image.Image, font: Font, rows: Sequence[str], columns: Sequence[str]) -> Layout:
    margin = max(8, cell.width // 48)
    widest = max((font.width(label) for label in columns), default=0)
    return Layout(
        cell_width=max(cell.width, widest),
        cell_height=cell.height,
        margin=margin,
        label_width=max((font.width(label) for label in rows), default=0) + margin,
        label_height=font.line_height + margin // 2,
    )


def _fitted(image: Image.Image, layout: Layout) -> Image.Image:
    if image.size == (layout.cell_width, layout.cell_height):
        return image
    framed = Image.new("RGB", (layout.cell_width, layout.cell_height), _PAPER)
    cells = image.copy()
    cells.thumbnail((layout.cell_width, layout.cell_height), Image.Resampling.LANCZOS)
    framed.paste(cells, ((layout.cell_width - cells.width) // 2, 0))
    return framed


def _centred(pen: ImageDraw.ImageDraw, font: Font, text: str, centre: int, top: int) -> None:
    pen.text((centre - font.width(text) // 2, top), text, font=font.face, fill=_INK)
