"""A font that can draw a given text: Latin and Vietnamese always, Chinese, Japanese and Korean where the system has a font for them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import ImageFont

# where Linux, Windows and macOS keep a font with Chinese, Japanese and Korean letters
_WIDE = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/noto-cjk/NotoSansCJK-Regular.ttc",
    "wqy-zenhei.ttc",
    "msyh.ttc",
    "YuGothM.ttc",
    "msgothic.ttc",
    "/System/Library/Fonts/Hiragino Sans GB.ttc",
    "/System/Library/Fonts/PingFang.ttc",
)
_FIRST_WIDE = 0x2E80  # where Unicode's East Asian blocks begin


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
    face = _load(size, any(ord(letter) >= _FIRST_WIDE for letter in text))
    above, below = face.getmetrics()
    return Font(face, above + below)


@lru_cache(maxsize=16)
def _load(size: int, wide: bool) -> Any:
    for candidate in (*(_WIDE if wide else ()), *_dejavu()):
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
