"""Every kind of file comes out with the colours it was made with. ``files/make.sh`` says which tools made them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageCms, ImageOps

from tests.unit.dataset.drawings import BLUE, FILES, GREEN, RED, YELLOW, close, drawing, quarters
from trainer.dataset.images.decode import Rejected, decode_image, open_image

COLOURS = [RED, GREEN, BLUE, YELLOW]


GREYS = [(51,) * 3, (102,) * 3, (153,) * 3, (204,) * 3]


def decoded(path: Path) -> Image.Image:
    return decode_image(open_image(path.read_bytes(), 89)).rgb


@pytest.mark.parametrize(
    "name",
    [
        "plain.png", "plain.jpg", "progressive.jpg", "plain.bmp", "plain.gif", "plain.tiff", "plain.webp", "lossy.webp", "plain.avif",
        "palette.png", "rgb16.png", "rgb16.tiff", "cmyk.jpg", "cmyk.tiff", "animated.gif",
    ],
)  # fmt: skip
def test_colour_files_keep_their_colours(name: str) -> None:
    image = decoded(FILES / name)
    assert image.mode == "RGB" and image.size == (96, 64)
    assert close(quarters(image), COLOURS, 3)


@pytest.mark.parametrize("name", ["grey.png", "grey.jpg", "grey16.png", "grey16.tiff", "grey-float.tiff"])
def test_grey_files_of_any_depth_keep_their_brightness(name: str) -> None:
    assert close(quarters(decoded(FILES / name)), GREYS, 1)


def test_bilevel_becomes_black_and_white() -> None:
    assert quarters(decoded(FILES / "bilevel.png")) == [(0, 0, 0), (0, 0, 0), (255, 255, 255), (255, 255, 255)]


@pytest.mark.parametrize("name", ["exif3.jpg", "exif5.jpg", "exif6.jpg", "exif8.jpg", "exif6.png"])
def test_exif_orientation_is_applied(name: str) -> None:
    stored = Image.open(FILES / name)
    assert stored.size == ((96, 64) if "3" in name else (64, 96)), "the file itself is turned"
    assert not close(quarters(stored), COLOURS, 20)
    image = decoded(FILES / name)
    assert image.size == (96, 64)
    assert close(quarters(image), COLOURS, 3)


@pytest.mark.parametrize("name", ["adobe-rgb.png", "adobe-rgb.jpg"])
def test_colour_profile_is_converted_to_srgb(name: str) -> None:
    assert not close(quarters(Image.open(FILES / name)), COLOURS, 20), "the stored numbers mean other colours"
    assert close(quarters(decoded(FILES / name)), COLOURS, 2)


def test_cmyk_profile_is_used(tmp_path: Path) -> None:
    profiles = [Path("/usr/share/color/icc/ghostscript/default_cmyk.icc"), Path("/usr/share/color/icc/ghostscript/ps_cmyk.icc")]
    profile = next((path for path in profiles if path.is_file()), None)
    if profile is None:
        pytest.skip("no CMYK profile on this machine")
    to_cmyk = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), str(profile), "RGB", "CMYK")
    cmyk = ImageCms.applyTransform(Image.open(FILES / "plain.png"), to_cmyk)
    assert cmyk is not None
    cmyk.save(tmp_path / "a.tiff", icc_profile=profile.read_bytes())
    # printing inks reach fewer colours: near, but nearer than the conversion that knows no inks
    assert close(quarters(decoded(tmp_path / "a.tiff")), COLOURS, 45)
    assert not close(quarters(cmyk.convert("RGB")), COLOURS, 45)


def test_damaged_profile_is_ignored(tmp_path: Path) -> None:
    drawing(1).save(tmp_path / "a.png", icc_profile=b"not a profile")
    picture = decode_image(open_image((tmp_path / "a.png").read_bytes(), 89))
    assert picture.rgb.tobytes() == drawing(1).tobytes()
    assert picture.steps == ["unusable colour profile ignored"]


@pytest.mark.parametrize("name", ["alpha.png", "alpha.webp", "alpha.tiff", "alpha-palette.png", "alpha.gif", "grey-alpha.png"])
def test_alpha_is_kept_apart(name: str) -> None:
    picture = decode_image(open_image((FILES / name).read_bytes(), 89))
    assert picture.alpha is not None
    assert (picture.alpha.getpixel((10, 32)), picture.alpha.getpixel((80, 32))) == (255, 0)


def test_opaque_alpha_is_dropped(tmp_path: Path) -> None:
    drawing(1).convert("RGBA").save(tmp_path / "a.png")
    assert decode_image(open_image((tmp_path / "a.png").read_bytes(), 89)).alpha is None


def test_lab_comes_back_as_rgb(tmp_path: Path) -> None:
    lab = ImageCms.profileToProfile(
        Image.open(FILES / "plain.png"), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    lab.save(tmp_path / "lab.tiff")
    assert close(quarters(decoded(tmp_path / "lab.tiff")), COLOURS, 8)  # 8-bit Lab is coarse


@pytest.mark.parametrize("name", ["plain.png", "plain.jpg", "plain.webp", "plain.gif", "plain.tiff", "plain.avif", "plain.bmp"])
def test_truncated_files_are_rejected(name: str) -> None:
    data = (FILES / name).read_bytes()
    data = data[: int(len(data) * 0.6)]
    with pytest.raises(Rejected) as caught:
        decode_image(open_image(data, 89))
    assert caught.value.reason in ("truncated", "unreadable")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"), (b"<!DOCTYPE html><html>404</html>", "web page"), (b"just some words", "not an image"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS"), (b"\x00\x00\x00\x18ftypheic\x00\x00", "HEIC"),
        (b"\x00\x00\x00\x18ftypmp42\x00\x00", "video"), (b"%PDF-1.7", "PDF"),
    ],
)  # fmt: skip
def test_other_files_are_rejected_with_their_kind(data: bytes, reason: str) -> None:
    with pytest.raises(Rejected, match=reason) as caught:
        open_image(data, 89)
    assert caught.value.reason == "unreadable"


def png_bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes that claims, and has, ``width`` x ``height`` black pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compressobj(9)
    line = bytes(1 + width // 8)
    data = b"".join(rows.compress(line) for _ in range(height)) + rows.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 40_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb_is_not_decoded(side: int) -> None:
    data = png_bomb(side, side)
    assert len(data) < 300_000
    with pytest.raises(Rejected) as caught:
        open_image(data, 89)
    assert caught.value.reason == ("too large" if side == 10_000 else "bomb")  # Pillow itself refuses the second


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_image_with_broken_exif_is_kept(kind: str) -> None:
    buffer = io.BytesIO()
    drawing(1).save(buffer, kind, exif=b"Exif\0\0garbagegarbage")
    picture = decode_image(open_image(buffer.getvalue(), 89))
    assert picture.rgb.size == drawing(1).size
    if kind == "PNG":
        assert (picture.rgb.tobytes(), picture.steps) == (drawing(1).tobytes(), ["unreadable EXIF ignored"])


@pytest.mark.parametrize("orientation", range(10))
def test_orientation_equals_pillows(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    drawing(1, (90, 60)).save(buffer, "PNG", exif=exif)
    with Image.open(buffer) as image:
        expected = ImageOps.exif_transpose(image).tobytes()
    assert decode_image(open_image(buffer.getvalue(), 89)).rgb.tobytes() == expected
