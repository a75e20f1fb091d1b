"""Safe names are valid on Linux and Windows."""

from __future__ import annotations

import unicodedata
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trainer.core.files.paths import safe_name

# learn.microsoft.com, "Naming Files, Paths, and Namespaces"
WINDOWS_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"COM{n}" for n in "123456789¹²³"), *(f"LPT{n}" for n in "123456789¹²³")}
WINDOWS_FORBIDDEN = set('<>:"/\\|?*')


@given(st.text(max_size=300))
def test_safe_name_is_valid_on_linux_and_windows(text: str) -> None:
    name = safe_name(text)
    assert name
    assert name not in (".", "..")
    assert len(name) <= 100
    assert len(name.encode("utf-8")) <= 240  # leaves room for an extension within 255
    assert not set(name) & WINDOWS_FORBIDDEN
    assert not any(unicodedata.category(character) in ("Cc", "Cs") for character in name)
    assert not name.endswith((".", " "))
    assert name.split(".")[0].rstrip(" ").upper() not in WINDOWS_DEVICES
    assert safe_name(name) == name


@given(st.text(max_size=40), st.integers(min_value=1, max_value=60))
def test_safe_name_keeps_to_the_limit(text: str, limit: int) -> None:
    assume(safe_name(text, limit=limit) != "untitled")
    assert len(safe_name(text, limit=limit)) <= limit + 1  # one more for the mark in front of a device's name


@given(st.text(max_size=60))
def test_a_safe_name_can_be_created(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / safe_name(text)
        path.write_text("x")
        assert [entry.name for entry in Path(folder).iterdir()] == [path.name]


@pytest.mark.parametrize("form", ["{}", "{}.txt", "{} .txt", "{}..safetensors", " {} "])
def test_safe_name_avoids_windows_devices(form: str) -> None:
    for device in WINDOWS_DEVICES:
        for text in (form.format(device), form.format(device.lower())):
            assert safe_name(text).split(".")[0].rstrip(" ").upper() not in WINDOWS_DEVICES


@pytest.mark.parametrize("end", [".", " ", "...", " . . "])
def test_safe_name_has_no_ending_that_windows_strips(end: str) -> None:
    assert safe_name(f"name{end}") == "name"
    assert safe_name(f"{end}name") == "name"


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("C:\\Windows\\x", "C_Windows_x"),
        ("c:x", "c_x"),
        ("\\\\server\\share\\x", "_server_share_x"),
        ("\\\\?\\C:\\x", "_C_x"),
        ("name::$DATA", "name_$DATA"),
        ("a/../b", "a_.._b"),
    ],
)
def test_safe_name_turns_windows_paths_and_streams_into_one_name(text: str, safe: str) -> None:
    assert safe_name(text) == safe
    assert PureWindowsPath(safe).name == safe
    assert not PureWindowsPath(safe).drive


def test_safe_name_keeps_letters_of_every_script() -> None:
    for text in ("Mein Stil ü", "絵柄 その1", "стиль", "スタイル", "it's (v2) [final]", "🎨 brush"):
        assert safe_name(text) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("character", ["a", "é", "猫", "🎨", "👩‍🎨"])
def test_a_long_name_is_cut_between_characters(character: str) -> None:
    name = safe_name(character * 250)
    assert len((name + ".safetensors").encode("utf-8")) <= 255
    assert name == (character * 250)[: len(name)]


def test_an_empty_name_becomes_the_fallback() -> None:
    for text in ("", " ", "...", ". .", "\ud800"):
        assert safe_name(text, fallback="nameless") == "nameless"
