"""Opening image files: formats, size limits, and no program started."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import EpsImagePlugin, Image
from safetensors.torch import save_file

from tests.tools import hostile
from tests.unit.lorafile.helpers import lora_tensors, small_layers
from trainer.core.errors import UserError
from trainer.core.files.image_file import IMAGE_FORMATS, ImageRejected, load_image
from trainer.dataset.images.decode import Rejected, open_image
from trainer.lorafile import card, inspect_lora
from trainer.lorafile.thumbnail import from_data_url
from trainer.lorafile.writing.edit import edited

ROOT = Path(__file__).resolve().parents[4]
EPS = hostile.eps()


def lora_file(path: Path, metadata: dict[str, str] | None = None) -> Path:
    """A LoRA that is fine apart from what lies in and beside it."""
    save_file(lora_tensors(small_layers()), path, metadata)
    return path


def _thumbnail(folder: Path) -> None:
    lora_card = card(lora_file(folder / "a.safetensors", {"modelspec.thumbnail": hostile.data_url(EPS)}))
    assert (lora_card.thumbnail, lora_card.problem) == ("", "")


def _information(folder: Path) -> None:
    assert inspect_lora(lora_file(folder / "a.safetensors", {"modelspec.thumbnail": hostile.data_url(EPS, "eps")})).thumbnail is None


def _preview(folder: Path) -> None:
    for ending in (".preview.png", ".png", ".jpg", ".webp"):
        (folder / f"a{ending}").write_bytes(EPS)
    assert card(lora_file(folder / "a.safetensors")).thumbnail == ""


def _thumbnail_by_hand(folder: Path) -> None:
    (folder / "a.png").write_bytes(EPS)
    with pytest.raises(UserError, match="cannot be read"):
        edited({}, {"thumbnail": str(folder / "a.png")})


def _dataset_image(folder: Path) -> None:
    with pytest.raises(Rejected):
        open_image(EPS, 100)


def _image_to_start_from(folder: Path) -> None:
    (folder / "photo.png").write_bytes(EPS)
    with pytest.raises(ImageRejected, match="not an image"):
        load_image(folder / "photo.png", None)


@pytest.mark.skipif(os.name == "nt", reason="NOT CHECKED: the program is a shell script")
@pytest.mark.parametrize(
    "use", [_thumbnail, _information, _preview, _thumbnail_by_hand, _dataset_image, _image_to_start_from], ids=lambda use: use.__name__
)
def test_no_image_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[Path], None]) -> None:
    mark, programs = tmp_path / "a program ran", tmp_path / "programs"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch '{mark}'\n", encoding="utf-8")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # Pillow remembers where it found Ghostscript
    use(tmp_path)
    assert not mark.exists()
    with pytest.raises(OSError):
        Image.open(io.BytesIO(EPS)).load()
    assert mark.exists(), "these bytes would start the program if the format were not named"


def test_formats_that_start_programs_or_contain_others_are_rejected() -> None:
    assert not {"EPS", "WMF", "GBR", "FPX", "MIC", "MPEG", "HDF5", "GRIB", "BUFR", "IM", "PDF"} & set(IMAGE_FORMATS)
    assert {"PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"} <= set(IMAGE_FORMATS)


def encoded(size: tuple[int, int], kind: str = "PNG", colour: str = "red") -> bytes:
    """One colour, as a file."""
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, kind)
    return stream.getvalue()


def test_pixels_and_bytes_are_limited_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vast = hostile.vast_picture()
    path = tmp_path / "a.png"
    path.write_bytes(vast)

    def decoded(*_: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    for source in (vast, path):
        with pytest.raises(ImageRejected, match=r"megapixels|too large"):
            load_image(source)
    with pytest.raises(ImageRejected, match="more than 0 megapixels"):
        load_image(encoded((65, 64)), max_pixels=64 * 64)
    with pytest.raises(OSError, match="more than"):
        load_image(path, max_bytes=1000)
    with pytest.raises(OSError, match="more than"):
        load_image(vast, max_bytes=1000)
    assert from_data_url(hostile.data_url(vast)) is None
    assert from_data_url(hostile.data_url(encoded((4097, 4096)))) is None


def test_huge_images_get_no_thumbnail(tmp_path: Path) -> None:
    vast = hostile.vast_picture()
    (tmp_path / "a.preview.png").write_bytes(vast)
    assert card(lora_file(tmp_path / "a.safetensors", {"modelspec.thumbnail": hostile.data_url(vast)})).thumbnail == ""


LIES = {
    "tile of a TIFF": (lambda: hostile.tiled_tiff(8000), "tiles of 8000x8000"),
    "image in an icon": (lambda: hostile.icon(encoded((2000, 2000))), "icon of 2000x2000"),
    "scans of a JPEG": (lambda: hostile.many_scans(1000), "JPEG with 1,010 scans"),
}


@pytest.mark.parametrize(("make", "reason"), LIES.values(), ids=LIES)
def test_small_images_that_take_vast_memory_or_time_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], bytes], reason: str
) -> None:
    """Their size in pixels is small, so that no limit on pixels rejects them."""
    data = make()
    assert len(data) < 300_000

    def decoded(*_: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    monkeypatch.setattr("PIL.IcoImagePlugin.IcoFile.getimage", decoded)
    with pytest.raises(ImageRejected, match=reason):
        load_image(data, max_pixels=1_000_000_000)
    with pytest.raises(Rejected, match=reason):
        open_image(data, 178)
    (tmp_path / "a.preview.png").write_bytes(data)
    assert card(lora_file(tmp_path / "a.safetensors", {"modelspec.thumbnail": hostile.data_url(data)})).thumbnail == ""


def test_ordinary_tiles_icons_and_progressive_images_are_read() -> None:
    assert load_image(hostile.tiled_tiff(256)).size == (64, 64)
    assert load_image(hostile.icon(encoded((256, 256)))).size == (256, 256)
    assert load_image(encoded((300, 300), "ICO")).size == (256, 256)
    assert load_image(hostile.many_scans(3)).size == (64, 64)


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "TGA"])
def test_thumbnails_have_a_format_of_browsers(tmp_path: Path, kind: str) -> None:
    """The decoders of the others may need more memory than the size in the header suggests."""
    (tmp_path / "a.preview.png").write_bytes(encoded((32, 32), kind))
    assert card(lora_file(tmp_path / "a.safetensors", {"modelspec.thumbnail": hostile.data_url(encoded((32, 32), kind))})).thumbnail == ""


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_the_extension_of_an_image_does_not_matter(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "photo.bin"
    path.write_bytes(encoded((30, 20), kind, "blue"))
    red, green, blue = load_image(path).getpixel((4, 4))  # type: ignore[misc]
    assert max(red, green) < 30 < 220 < blue
    assert load_image(path, "L").mode == "L"


@pytest.mark.parametrize("damage", [lambda data: data[:-300], lambda data: data[:40], lambda data: b"", lambda data: b"GIF89a"])
def test_damaged_files_raise_one_exception(damage: Callable[[bytes], bytes]) -> None:
    noise = Image.frombytes("RGB", (64, 64), os.urandom(64 * 64 * 3))
    stream = io.BytesIO()
    noise.save(stream, "PNG")
    with pytest.raises(ImageRejected):
        load_image(damage(stream.getvalue()))


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="NOT CHECKED: ruff is not installed")
@pytest.mark.parametrize("code", ["from PIL import Image\nImage.open('a')\n", "import PIL.Image as P\nP.open('a')\n"])
@pytest.mark.parametrize("place", ["trainer/new.py", "nodes/new.py", "demo/new.py", "run.py"])
def test_ruff_rejects_image_open_elsewhere(place: str, code: str) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--quiet", "--output-format=concise", "--stdin-filename", place, "-"]
    done = subprocess.run(command, cwd=ROOT, input=code, capture_output=True, text=True, encoding="utf-8", check=False)
    assert "TID251" in done.stdout, done.stdout + done.stderr
