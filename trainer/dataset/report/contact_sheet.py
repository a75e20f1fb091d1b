"""The contact sheet: all images of a dataset with their captions in one image."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ...core.counting import plural
from ...core.errors import UserError
from ...core.files.image_file import load_image
from ...core.files.writing import atomic_path
from ...core.work.progress import track
from ..manifest.items import Dataset, Item

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

BACKGROUND = (24, 24, 27)
TEXT = (235, 235, 235)
FAINT = (150, 150, 155)
GAP = 12
_CJK_FONTS = {
    "linux": ("/usr/share/fonts", ("NotoSansCJK-Regular.ttc", "NotoSansCJKjp-Regular.otf", "wqy-microhei.ttc")),
    "win32": ("C:/Windows/Fonts", ("YuGothM.ttc", "meiryo.ttc", "msyh.ttc", "malgun.ttf", "msgothic.ttc")),
    "darwin": ("/System/Library/Fonts", ("Hiragino Sans GB.ttc", "PingFang.ttc", "AppleSDGothicNeo.ttc")),
}


def contact_sheet(
    dataset: Dataset, names: Sequence[str] = (), *, columns: int = 0, limit: int = 48, cell: int = 256, lines: int = 3
) -> Image.Image:
    """An RGB image of the first ``limit`` images, each in a square of ``cell`` pixels with its file name and caption below.

    ``names``: the names of the files that the images come from, in their order; without them, no file names are shown.

    ``columns`` 0: chosen so that the sheet is a little wider than high. ``lines``: rows of caption text for each image.
    """
    items = list(dataset.items[:limit])
    if not items:
        raise UserError(f"The dataset {dataset.name} has no images.", "Prepare it again.", kind="dataset")
    columns = columns or max(1, min(len(items), math.ceil(math.sqrt(len(items) * 1.5))))
    columns = min(columns, len(items))
    size = max(12, cell // 16)
    line = int(size * 1.35)
    captions = [wrap_caption(item.caption, cell, size, lines) for item in items]
    named = 1 if names else 0
    cell_height = cell + 4 + (named + max(len(caption) for caption in captions)) * line
    head = GAP + int(size * 3.6)
    rows = math.ceil(len(items) / columns)
    sheet = Image.new("RGB", (columns * (cell + GAP) + GAP, head + rows * (cell_height + GAP)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), _shorten(dataset.name, sheet.width - 2 * GAP, size + 4), font=_font(dataset.name, size + 4), fill=TEXT)
    more = f", the first {len(items)} shown" if len(dataset.items) > len(items) else ""
    facts = f"{plural(len(dataset.items), 'image')}{more} · {dataset.resolution} px · {dataset.hash[:12]}"
    draw.text((GAP, GAP + size + 10), _shorten(facts, sheet.width - 2 * GAP, size), font=_font(facts, size), fill=FAINT)
    for number, item in enumerate(track(items, "drawing the contact sheet", len(items))):
        x = GAP + number % columns * (cell + GAP)
        y = head + number // columns * (cell_height + GAP)
        _paste(sheet, dataset, item, (x, y), cell)
        if names:
            draw.text((x, y + cell + 4), _shorten(names[number], cell, size), font=_font(names[number], size), fill=FAINT)
        for row, text in enumerate(captions[number], named):
            draw.text((x, y + cell + 4 + row * line), text, font=_font(text, size), fill=FAINT if item.is_regularisation else TEXT)
    return sheet


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Save ``sheet`` in the format that the extension of ``path`` stands for. Raises UserError for an unknown one."""
    form = Image.registered_extensions().get(path.suffix.lower(), "")
    if form not in Image.SAVE:
        raise UserError(f"{path.name} does not end like an image file.", "Choose a name that ends in .png or .jpg.", kind="output")
    with atomic_path(path) as temporary:
        sheet.save(temporary, format=form)


def wrap_caption(text: str, width: int, size: int, lines: int) -> list[str]:
    """``text`` in at most ``lines`` lines of ``width`` pixels; the last ends with … when there is more."""
    font = _font(text, size)
    text = text[: 2 * lines * width]  # more letters than fit, for captions of megabytes
    words = [piece for word in text.split() for piece in _pieces(word, width, font)]
    result: list[str] = []
    while words and len(result) < lines:
        row = words.pop(0)
        while words and font.getlength(f"{row} {words[0]}") <= width:
            row = f"{row} {words.pop(0)}"
        result.append(row)
    if words and result:
        result[-1] = _shorten(result[-1] + " …", width, size) if font.getlength(result[-1] + " …") > width else result[-1] + " …"
    return result


def _pieces(word: str, width: int, font: Font) -> list[str]:
    """A word wider than a line (CJK has no spaces) in parts that fit."""
    if font.getlength(word) <= width:
        return [word]
    parts, part = [], ""
    for letter in word:
        if part and font.getlength(part + letter) > width:
            parts.append(part)
            part = ""
        part += letter
    return [*parts, part]


def _shorten(text: str, width: int, size: int) -> str:
    font = _font(text, size)
    if font.getlength(text) <= width:
        return text
    text = text.removesuffix("…").rstrip()
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _paste(sheet: Image.Image, dataset: Dataset, item: Item, place: tuple[int, int], cell: int) -> None:
    image = load_image(dataset.image_path(item))
    scale = cell / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.LANCZOS)
    sheet.paste(image, (place[0] + (cell - size[0]) // 2, place[1] + (cell - size[1]) // 2))


def _font(text: str, size: int) -> Font:
    """Pillow's own scalable font; a system font for scripts it lacks, when there is one."""
    if all(ord(letter) < 0x2E80 for letter in text):
        return _own_font(size)
    return _cjk_font(size) or _own_font(size)


@lru_cache(maxsize=16)
def _own_font(size: int) -> Font:
    return ImageFont.load_default(size)


@lru_cache(maxsize=16)
def _cjk_font(size: int) -> Font | None:
    folder, names = _CJK_FONTS.get(sys.platform, _CJK_FONTS["linux"])
    for path in _named(Path(folder), names):
        try:
            return ImageFont.truetype(str(path), size)
        except OSError:
            continue
    return None


@lru_cache(maxsize=4)
def _named(folder: Path, names: Sequence[str]) -> list[Path]:
    found = {path.name: path for path in folder.rglob("*") if path.name in names} if folder.is_dir() else {}
    return [found[name] for name in names if name in found]
