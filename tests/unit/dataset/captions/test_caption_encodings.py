"""Captions that editors saved in the encoding of their country are read as they were written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.dataset.drawings import folder_of
from trainer.config.prepare_sections import CaptionSettings
from trainer.dataset.captions.encodings import decode_text
from trainer.dataset.reading.sources import from_folder

TEXTS = {
    "gb18030": ["一个女孩, 长发", "1girl, 蓝色眼睛", "初音未来, 双马尾", "水手服, 教室, 窗户", "穿着红色和服的少女，背景是樱花树"],
    "big5": ["一個女孩, 長髮", "1girl, 藍色眼睛, 微笑", "初音未來，雙馬尾", "貓耳，尾巴", "穿著紅色和服的少女，背景是櫻花樹"],
    "cp932": [
        "少女、長い髪",
        "1girl, 青い髪, 笑顔",
        "初音ミク、ツインテール",
        "赤い着物",
        "学校, 窓, 夕焼け",
        "女性、黒髪、眼鏡",
        "1girl, 帽子, 表情",
        *("girl with a 帽子, 表示", "1girl, 海", "1girl, 月, 雨", "靴, 空", "ソックス"),
    ],
    "cp949": ["소녀, 긴 머리", "1girl, 파란 눈, 웃음", "교복을 입은 소녀가 서 있다", "빨간 드레스", "고양이 귀, 꼬리", "미쿠"],
    "cp1251": ["девушка, длинные волосы", "1girl, улыбка, Аниме", "КРАСНОЕ платье — «школа»", "кот, ёлка, ночь"],
    "cp1252": [
        *("fiancée", "Pokémon, café, naïve", "girl’s dress, “Hello” – ok", "señorita, über, Ärger", "–smile, 5–7", "Žižek, Šárka, œuvre"),
        *("POKÉMON, ÉCOLE", "artist – Žďár".replace("ď", "d"), "«bonjour», ¿qué?", "20 °C, 5€, ½", "wait…what, dog—cat", "rock ’n’ roll"),
    ],
    "utf-16-le": ["少女, 猫", "1girl, long hair", "少女、長い髪, 1girl", "девушка, волосы", "소녀, 긴 머리", "fiancée"],
    "utf-16-be": ["少女, 猫", "1girl, long hair", "девушка, волосы", "소녀, 긴 머리"],
}


@pytest.mark.parametrize(("encoding", "text"), [(encoding, text) for encoding, texts in TEXTS.items() for text in texts])
def test_encoding_of_short_captions_is_guessed(encoding: str, text: str) -> None:
    assert decode_text(text.encode(encoding)) == (text, encoding)


@pytest.mark.parametrize("text", ["", "1girl\0", "1girl, solo\0\0", "少女, 猫", "fiancée", "1girl, \x01smile, long hair", "девушка"])
def test_utf_8_stays_utf_8(text: str) -> None:
    assert decode_text(text.encode()) == (text, "")


@pytest.mark.parametrize("data", [b"\0", b"\0\0", b"\xff\xfe", b"\xff", b"\x80\x81\x82\x83", bytes(range(256)), b"\xd8\x00" * 9])
def test_any_bytes_give_text(data: bytes) -> None:
    assert isinstance(decode_text(data)[0], str)


def test_guesses_give_one_warning_per_encoding(tmp_path: Path) -> None:
    folder_of(tmp_path, 5)
    for number, (text, encoding) in enumerate([("café", "cp1252"), ("über", "cp1252"), ("naïve", "cp1252"), ("소녀, 긴 머리", "cp949")]):
        (tmp_path / f"{number}.txt").write_bytes(text.encode(encoding))
    (tmp_path / "4.txt").write_bytes(b"x" * (2 << 20))
    assert from_folder(tmp_path, CaptionSettings()).warnings == [
        "1 caption file cannot be read, for example 4.txt (the file is 2 MB long, more than 1).",
        "3 caption files are not UTF-8 and were read as cp1252, for example 0.txt. Check the captions.",
        "1 caption file is not UTF-8 and was read as cp949, for example 3.txt. Check the captions.",
    ]
