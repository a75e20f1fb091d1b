"""Find a font that can draw a text: Latin and Vietnamese always, Chinese, Japanese and Korean if the system has a font for them."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import ImageFont

log = logging.getLogger("animelora")

# fonts with East Asian characters on Linux, Windows and macOS, by script, because few have all of them
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
    """A Pillow font and its line height in pixels."""

    face: Any
    line_height: int

    def width(self, text: str) -> int:
        """Width of the drawn ``text`` in pixels."""
        return round(float(self.face.getlength(text)))


def font_for(text: str, size: int) -> Font:
    """A font of ``size`` pixels with the characters of ``text``, if this computer has one."""
    face = _load(size, _wide_fonts(text))
    above, below = face.getmetrics()
    return Font(face, above + below)


def _wide_fonts(text: str) -> tuple[str, ...]:
    """Candidate fonts for the East Asian characters of ``text``, the best first; none without such characters."""
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
        log.warning("no font with East Asian characters was found, so labels show boxes; install Noto Sans CJK")
    for candidate in _dejavu():
        try:
            return ImageFont.truetype(candidate, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def _dejavu() -> tuple[str, ...]:
    """DejaVu Sans, which comes with matplotlib: Latin with Vietnamese, Greek and Cyrillic."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or not spec.submodule_search_locations:
        return ("DejaVuSans.ttf",)
    return (str(Path(spec.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"), "DejaVuSans.ttf")
