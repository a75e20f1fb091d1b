"""Guess the encoding of a text that is neither UTF-8 nor marked: the one in which it looks most like text.

Captions are short and come from editors of a few countries, for which general detectors are wrong too often (docs/architecture.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable

_SAMPLE = 1 << 15  # bytes or characters that are examined
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")


def decode_text(data: bytes) -> tuple[str, str]:
    """(text, the encoding if it was guessed, else "")."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace"), ""
    utf_16 = _unmarked_utf_16(data)
    if utf_16:
        return data.decode(utf_16, "replace"), utf_16
    try:
        return data.decode("utf-8-sig"), ""
    except UnicodeDecodeError:
        pass
    other_script = _best_of_other_scripts(data)
    # accented letters are single bytes between ASCII letters; other scripts have runs of such bytes
    if other_script and re.search(rb"[\x80-\xff]{3}", data) is not None:
        return data.decode(other_script), other_script
    try:
        western = data.decode("cp1252")
    except UnicodeDecodeError:
        found = other_script or "latin-1"
        return data.decode(found), found
    # in cp932 the second byte of a character is often ASCII, which leaves no runs
    if other_script == "cp932" and (_score(data, other_script) or 0) > 0.8 and not _looks_western(western[:_SAMPLE]):
        return data.decode(other_script), other_script
    return western, "cp1252"


def _looks_western(text: str) -> bool:
    """Whether most characters beyond ASCII stand where Western languages have them."""
    padded = f" {text} "
    places = [match.start() for match in re.finditer(r"[^\x00-\x7f]", padded)]
    return sum(_fits(*padded[place - 1 : place + 2]) for place in places) > len(places) / 2


def _fits(before: str, character: str, after: str) -> bool:
    """Whether a Western text can have ``character`` between these two."""
    if after == "\\" or character in "ƒ¤¦§¨¬¯´¶¸†‡ˆ‹›‰˜":
        return False
    if character in "ŠŒŽ":
        return after.islower() and not before.isalpha()  # in capitals alone, two bytes of Japanese are more likely
    if character.isalpha():
        if character.isupper() and before.isalpha() and not before.isupper():
            return False  # a capital letter inside a word
        return before.isalpha() or after.isalpha()
    if character in "–—":
        return after.isascii()
    if character == "’" and before.isalpha():
        return True  # an apostrophe
    if character in "‘“«„‚":
        return not before.isalnum() and not after.isspace()
    if character in "’”»":
        return not before.isspace() and not after.isalnum()
    return True


def _best_of_other_scripts(data: bytes) -> str:
    """The encoding of a script other than Latin in which ``data`` looks most like text; empty if it is valid in none."""
    scores = {name: score for name in (*_WEIGHTS, "cp1251") if (score := _score(data, name)) is not None}
    return max(scores, key=lambda name: scores[name]) if scores else ""


def _unmarked_utf_16(data: bytes) -> str:
    """The byte order of UTF-16 without a byte order mark, else "". The bytes of UTF-16 include control characters; text does not."""
    if len(data) % 2 or not data:
        return ""
    head = data[:_SAMPLE]
    body = head.rstrip(b"\x00")  # a C string's end is not UTF-16
    if not body or len(_CONTROL.findall(body)) < len(head) / 8:
        return ""
    scores = {name: _utf_16_score(head, name) for name in ("utf-16-le", "utf-16-be")}
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] > 0.7 else ""


def _utf_16_score(data: bytes, name: str) -> float:
    text = data.decode(name, "replace")
    return sum(_utf_16_weight(character) for character in text) / len(text)


def _utf_16_weight(character: str) -> float:
    code = ord(character)
    if 0x20 <= code < 0x7F or character in "\t\r\n":
        return 1.0
    # Latin, Greek, Cyrillic; punctuation; kana; ideographs; Hangul; full width
    for low, high in ((0xA0, 0x530), (0x2010, 0x2040), (0x3000, 0x3100), (0x4E00, 0xA000), (0xAC00, 0xD7A4), (0xFF00, 0xFF66)):
        if low <= code < high:
            return 0.8  # in the wrong byte order, ASCII becomes ideographs
    return -1.0


def _score(data: bytes, name: str) -> float | None:
    """The mean weight of the characters beyond ASCII; None when the bytes are not valid in this encoding."""
    try:
        text = data.decode(name)[:_SAMPLE]
    except UnicodeDecodeError:
        return None
    if name == "cp1251":
        return _cyrillic(text)
    weights = [_WEIGHTS[name](character.encode(name, "replace")) for character in text if character > "\x7f"]
    return sum(weights) / max(1, len(weights))


# Each of these character sets has one block of common characters (level 1 of JIS X 0208 and GB 2312, the first plane of Big5, Hangul in
# KS X 1001). Text with mostly other characters is in another encoding.


def _japanese(raw: bytes) -> float:
    if len(raw) == 1:
        return 0.0  # half-width katakana
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
    # slightly more than the others: Korean text also looks like common Chinese characters, Chinese text rarely looks like Hangul
    return 1.05 if 0xB0 <= raw[0] <= 0xC8 else 0.7 if raw[0] in (0xA1, 0xA3) else 0.0


def _cyrillic(text: str) -> float:
    """The share of characters in words that are lower case, capitalised or all capitals."""
    total, count = 0.0, 0
    for word in re.findall(r"[^\x00-\x7f]+", text):
        letters = re.fullmatch(r"[\u2013-\u201e«»]*(?:[А-ЯЁ]?[а-яё]+|[А-ЯЁ]+)[\u2013-\u201e«»]*", word)
        count += len(word)
        total += len(word) if letters else 0.0
    return total / max(1, count)


_WEIGHTS: dict[str, Callable[[bytes], float]] = {"cp932": _japanese, "gb18030": _chinese, "big5": _taiwanese, "cp949": _korean}
