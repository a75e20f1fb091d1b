"""Hostile files for tests of everything that opens files: weights, images, archives, datasets and logs."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save, save_file

Maker = Callable[[Path], None]
SIDE = 60_000  # of the decompression bomb: 450 MB at one bit per pixel, 10.8 GB as RGB


class Evil:
    """Creates the file ``mark`` when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (str(self._mark), "w"))


def header(entries: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _entry(shape: list[int], start: int, end: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


def weights(mark: Path) -> dict[str, Maker]:
    """Name of a weights file -> function that writes it. Unpickling one creates ``mark``."""
    evil = Evil(mark)
    table: dict[str, bytes] = {
        "long header.safetensors": header({}, length=1 << 40),
        "no header.safetensors": b"\xff" * 64,
        "empty.safetensors": b"",
        "overlap.safetensors": header({"a": _entry([2], 0, 8), "b": _entry([2], 4, 12)}, bytes(12)),
        "beyond the end.safetensors": header({"a": _entry([1 << 40], 0, 1 << 42)}, bytes(16)),
        "negative.safetensors": header({"a": _entry([-1], 8, 0)}, bytes(8)),
        "deep.safetensors": header(b"[" * 100_000),
        "list.safetensors": header([1, 2]),
        "web page.safetensors": b"<!DOCTYPE html><html>404</html>",
        "no numbers.safetensors": save({"a": torch.zeros(1)}),
        "a pickle.safetensors": pickle.dumps(evil),
        "old pickle.ckpt": pickle.dumps({"state_dict": evil}),
        "old pickle.pt": pickle.dumps({"a": evil}),
        "cut zip.ckpt": b"PK\x03\x04" + bytes(100),
    }
    makers: dict[str, Maker] = {name: (lambda path, data=data: path.write_bytes(data) and None) for name, data in table.items()}  # type: ignore[misc]
    makers["new pickle.ckpt"] = lambda path: torch.save({"state_dict": {"a": torch.zeros(1), "b": evil}}, path)
    makers["new pickle.pt"] = lambda path: torch.save([torch.zeros(1), evil], path)
    for ending in (".pt", ".ckpt"):
        makers[f"claims a terabyte{ending}"] = lambda path: torch.save({"state_dict": {"a": torch.zeros(1).expand(1 << 38)}}, path)
        makers[f"deflated{ending}"] = deflated
    makers["folder.safetensors"] = lambda path: path.mkdir()
    if os.name != "nt":
        makers["device.safetensors"] = lambda path: path.symlink_to("/dev/zero")
        makers["pipe.safetensors"] = lambda path: os.mkfifo(path)
        makers["nowhere.safetensors"] = lambda path: path.symlink_to("/nowhere/at/all")
        makers["loop.safetensors"] = lambda path: path.symlink_to(path)
        makers["secret.safetensors"] = lambda path: path.symlink_to("/etc/passwd")
    return makers


def deflated(path: Path) -> None:
    """Write a PyTorch archive of 200 KB whose data unpacks to 200 MB."""
    held = io.BytesIO()
    torch.save({"a": torch.zeros(4)}, held)
    with zipfile.ZipFile(held) as small, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as large:
        for name in small.namelist():
            data = small.read(name).replace(b"K\x04", b"J" + (50_000_000).to_bytes(4, "little"))
            large.writestr(name, bytes(200_000_000) if name.endswith("data/0") else data)


def altered(whole: Path, target: Path, key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """Copy a safetensors file with one tensor changed."""
    tensors = load_file(whole)
    tensors[key] = change(tensors[key]).contiguous()
    save_file(tensors, target)
    return target


def eps() -> bytes:
    """An image for which Pillow starts Ghostscript by default."""
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n9 9 lineto stroke showpage\n%%EOF\n"


def data_url(data: bytes, kind: str = "png") -> str:
    """``data`` in the form of a LoRA file's thumbnail."""
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()


def lora_metadata() -> dict[str, dict[str, str]]:
    """Description -> hostile metadata of a LoRA with valid tensors."""
    folders, repeats = ({f"{number}_folder": of for number in range(4000)} for of in ({"tag": 1}, {"n_repeats": 1}))
    return {
        "EPS thumbnail": {"modelspec.thumbnail": data_url(eps())},
        "EPS thumbnail that says so": {"modelspec.thumbnail": data_url(eps(), "x-eps")},
        "vast thumbnail": {"modelspec.thumbnail": data_url(vast_picture())},
        "thumbnail with a vast tile": {"modelspec.thumbnail": data_url(tiled_tiff(8000), "tiff")},
        "thumbnail that is an icon of a vast image": {"modelspec.thumbnail": data_url(icon(vast_picture()), "x-icon")},
        "thumbnail of a thousand scans": {"modelspec.thumbnail": data_url(many_scans(1000), "jpeg")},
        "thumbnail that is no image": {"modelspec.thumbnail": "data:image/png;base64," + "A" * 4000},
        "many folders": {"ss_tag_frequency": json.dumps(folders), "ss_dataset_dirs": json.dumps(repeats)},
        "deep": {"ss_tag_frequency": "[" * 50_000, "ss_dataset_dirs": '{"a":' * 5000},
        "wrong types": {"ss_tag_frequency": '{"a": {"b": null}}', "ss_dataset_dirs": "[null]", "ss_network_args": "7"},
        "half a character": {"modelspec.title": "half", "ss_tag_frequency": '{"\\ud800": {"\\udfff": 3}}'},
    }


def vast_picture() -> bytes:
    """A PNG of half a megabyte with 60,000 x 60,000 black pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compressobj(1)
    lines = bytes(1 + SIDE // 8) * 100
    data = b"".join(rows.compress(lines) for _ in range(SIDE // 100)) + rows.flush()
    head = struct.pack(">IIBBBBB", SIDE, SIDE, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tiled_tiff(tile: int) -> bytes:
    """A TIFF of 64 x 64 black pixels in one tile of ``tile`` x ``tile``."""
    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(bytes(3 * tile)) for _ in range(tile)) + rows.flush()
    short, whole, begin = 3, 4, 8 + 2 + 12 * 10 + 4  # types of tags; where the list of tags ends
    tags = [(256, whole, 64), (257, whole, 64), (258, short, begin), (259, short, 8), (262, short, 2), (277, short, 3),
            (322, whole, tile), (323, whole, tile), (324, whole, begin + 6), (325, whole, len(data))]  # fmt: skip
    listed = b"".join(struct.pack("<HHII", tag, kind, 3 if tag == 258 else 1, value) for tag, kind, value in tags)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + listed + bytes(4) + struct.pack("<HHH", 8, 8, 8) + data


def icon(image: bytes) -> bytes:
    """An icon file that lists ``image``, a PNG, as one of 16 x 16 pixels."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(image), 22) + image


def many_scans(count: int) -> bytes:
    """A JPEG of 64 x 64 pixels that repeats its last scan ``count`` times."""
    stream = io.BytesIO()
    Image.new("RGB", (64, 64)).save(stream, "JPEG", progressive=True)
    start, end = stream.getvalue()[:-2], b"\xff\xd9"
    return start + (b"\xff\xda" + start.rpartition(b"\xff\xda")[2]) * count + end


def slipping_zip(picture: bytes) -> bytes:
    """An archive with one valid member, some whose paths lead outside, a link, and one that unpacks to more than 1 GiB."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("good.png", picture)
        for name in ("../escaped.png", "/tmp/escaped.png", "a\\..\\..\\escaped.png", "C:\\escaped.png"):
            archive.writestr(name, picture)
        link = zipfile.ZipInfo("link.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        with archive.open("bomb.bmp", "w", force_zip64=True) as member:
            for _ in range(33):
                member.write(bytes(1 << 25))
    return held.getvalue()


def raw_tar(path: Path, *members: tuple[str, bytes, bytes]) -> Path:
    """Write a gzipped tar of (name, type, content) with headers that the standard library would not write."""
    with tarfile.open(path, "w:gz", format=tarfile.USTAR_FORMAT, compresslevel=1) as file:
        for name, kind, data in members:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(data)
            # addfile keeps the type and writes the content as it is
            file.fileobj.write(info.tobuf(tarfile.USTAR_FORMAT))
            file.fileobj.write(data + bytes(-len(data) % 512))
    return path


def manifest(folder: Path, rows: list[dict[str, Any]], header: Mapping[str, Any] | None = None) -> None:
    """Replace the rows and some ``header`` fields of a dataset's manifest, with a valid checksum."""
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (folder / "manifest.jsonl").write_bytes(data)
    whole = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    whole |= {"rows_sha256": hashlib.sha256(data).hexdigest(), **(header or {})}
    (folder / "manifest.json").write_text(json.dumps(whole), encoding="utf-8")
