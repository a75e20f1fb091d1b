"""What encoding a text is in that does not say so: the one in which it reads most like text."""

from __future__ import annotations

import re
from collections.abc import Callable

_SAMPLE = 1 << 15  # bytes or characters that are looked at
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")


def decode_text(data: bytes) -> tuple[str, str]:
    """(text, encoding guessed or "" when it is certain)."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace"), ""
    wide = _wide(data)
    if wide:
        return data.decode(wide, "replace"), wide
    try:
        return data.decode("utf-8-sig"), ""
    except UnicodeDecodeError:
        pass
    # accents stand alone between ASCII letters; the bytes of other alphabets come in runs
    if re.search(rb"[\x80-\xff]{3}", data) is not None:
        scores = {name: score for name in (*_WORTHS, "cp1251") if (score := _score(data, name)) is not None}
        if scores:
            best = max(scores, key=lambda name: scores[name])
            return data.decode(best), best
    try:
        return data.decode("cp1252"), "cp1252"
    except UnicodeDecodeError:
        return data.decode("latin-1"), "latin-1"


def _wide(data: bytes) -> str:
    """UTF-16 without a mark: text has no control characters, but the halves of such have."""
    if len(data) % 2 or not data:
        return ""
    head = data[:_SAMPLE]
    body = head.rstrip(b"\x00")  # the end of a string in C says nothing
    if not body or len(_CONTROL.findall(body)) < len(head) / 8:
        return ""
    scores = {name: _wide_score(head, name) for name in ("utf-16-le", "utf-16-be")}
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] > 0.7 else ""


def _wide_score(data: bytes, name: str) -> float:
    text = data.decode(name, "replace")
    return sum(_wide_worth(character) for character in text) / len(text)


def _wide_worth(character: str) -> float:
    code = ord(character)
    if 0x20 <= code < 0x7F or character in "\t\r\n":
        return 1.0
    # Latin, Greek, Cyrillic; punctuation; kana; ideographs; Hangul; full width
    for low, high in ((0xA0, 0x530), (0x2010, 0x2040), (0x3000, 0x3100), (0x4E00, 0xA000), (0xAC00, 0xD7A4), (0xFF00, 0xFF66)):
        if low <= code < high:
            return 0.8  # the wrong order of bytes makes ideographs of ASCII
    return -1.0


def _score(data: bytes, name: str) -> float | None:
    """The mean worth of the characters beyond ASCII, or None when the bytes are not valid."""
    try:
        text = data.decode(name)[:_SAMPLE]
    except UnicodeDecodeError:
        return None
    if name == "cp1251":
        return _cyrillic(text)
    worths = [_WORTHS[name](character.encode(name, "replace")) for character in text if character > "\x7f"]
    return sum(worths) / max(1, len(worths))


# In each of these sets the characters that are in daily use come first, in a block of their own (JIS X 0208 and GB 2312 level 1, Big5's
# first plane, KS X 1001's Hangul): what lies outside is rare, and a whole text of it is in another encoding.


def _japanese(raw: bytes) -> float:
    if len(raw) == 1:
        return 0.0  # katakana of half width
    if raw[0] in (0x81, 0x83) or (raw[0] == 0x82 and raw[1] >= 0x4F):
        return 1.0  # punctuation and kana
    return 1.0 if 0x88 <= raw[0] <= 0x97 else 0.2


def _chinese(raw: bytes) -> float:
    if len(raw) != 2 or raw[1] < 0xA1:
        return 0.0
    return 1.0 if 0xB0 <= raw[0] <= 0xD7 else 0.7 if raw[0] in (0xA1, 0xA3) else 0.2


def _taiwanese(raw: bytes) -> float:
    if len(raw) != 2:
        return 0.0
    return 1.0 if 0xA4 <= raw[0] <= 0xC6 else 0.7 if 0xA1 <= raw[0] <= 0xA3 else 0.2


def _korean(raw: bytes) -> float:
    if len(raw) != 2 or raw[1] < 0xA1:
        return 0.0
    # a little more than the others: Chinese text hardly keeps to this block, Korean text read as Chinese does
    return 1.05 if 0xB0 <= raw[0] <= 0xC8 else 0.7 if raw[0] in (0xA1, 0xA3) else 0.0


def _cyrillic(text: str) -> float:
    """Small letters, and capitals where a word begins or is all capitals."""
    worth, count = 0.0, 0
    for word in re.findall(r"[^\x00-\x7f]+", text):
        letters = re.fullmatch(r"[\u2013-\u201e«»]*(?:[А-ЯЁ]?[а-яё]+|[А-ЯЁ]+)[\u2013-\u201e«»]*", word)
        count += len(word)
        worth += len(word) if letters else 0.0
    return worth / max(1, count)


_WORTHS: dict[str, Callable[[bytes], float]] = {"cp932": _japanese, "gb18030": _chinese, "big5": _taiwanese, "cp949": _korean}
