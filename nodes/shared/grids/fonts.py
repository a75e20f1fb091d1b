"""A font that can draw a given text: Latin and Vietnamese always, Chinese, Japanese and Korean where the system has a font for them."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import ImageFont

log = logging.getLogger("animelora")

# where Linux, Windows and macOS keep fonts with East Asian letters; those of a script first, since few have all of them
_KOREAN = ("malgun.ttf", "/System/Library/Fonts/AppleSDGothicNeo.ttc", "NanumGothic.ttf")
_JAPANESE = ("meiryo.ttc", "YuGothM.ttc", "msgothic.ttc", "/System/Library/Fonts/ヒラギノ角ゴシック W3.ttc", "ipag.ttf")
_CHINESE = (
    *("msyh.ttc", "simsun.ttc", "/System/Library/Fonts/PingFang.ttc", "/System/Library/Fonts/Hiragino Sans GB.ttc"),
    *("wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf"),
)
_ALL = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/noto-cjk/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/google-noto-sans-cjk-fonts/NotoSansCJK-Regular.ttc",
    "/Library/Fonts/Arial Unicode.ttf",
    "/System/Library/Fonts/Supplemental/Arial Unicode.ttf",
)
_FIRST_WIDE = 0x2E80  # where Unicode's East Asian blocks begin
_KANA, _HANGUL = range(0x3040, 0x3100), (range(0x1100, 0x1200), range(0xAC00, 0xD7B0))


@dataclass(frozen=True)
class Font:
    """A Pillow font with its measures in pixels."""

    face: Any
    line_height: int

    def width(self, text: str) -> int:
        """How wide ``text`` is drawn."""
        return round(float(self.face.getlength(text)))


def font_for(text: str, size: int) -> Font:
    """A font of ``size`` pixels that has the letters of ``text``, as far as this computer has one."""
    face = _load(size, _wide_fonts(text))
    above, below = face.getmetrics()
    return Font(face, above + below)


def _wide_fonts(text: str) -> tuple[str, ...]:
    """Fonts for the East Asian letters of ``text``, the likeliest first; none where it has no such letters."""
    letters = {ord(letter) for letter in text}
    if all(letter < _FIRST_WIDE and letter not in _HANGUL[0] for letter in letters):
        return ()
    if any(letter in block for block in _HANGUL for letter in letters):
        return (*_ALL, *_KOREAN, *_JAPANESE, *_CHINESE)
    if any(letter in _KANA for letter in letters):
        return (*_ALL, *_JAPANESE, *_CHINESE, *_KOREAN)
    return (*_ALL, *_CHINESE, *_JAPANESE, *_KOREAN)


@lru_cache(maxsize=16)
def _load(size: int, wide: tuple[str, ...]) -> Any:
    for candidate in wide:
        try:
            return ImageFont.truetype(candidate, size)
        except OSError:
            continue
    if wide:
        log.warning("no font with East Asian letters was found: install Noto Sans CJK, else labels show boxes")
    for candidate in _dejavu():
        try:
            return ImageFont.truetype(candidate, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def _dejavu() -> tuple[str, ...]:
    """DejaVu Sans, which matplotlib brings along: Latin with Vietnamese, Greek and Cyrillic."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or not spec.submodule_search_locations:
        return ("DejaVuSans.ttf",)
    return (str(Path(spec.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"), "DejaVuSans.ttf")
