"""Checks PyTorch files (.pt, .ckpt, .bin) before torch opens them: they must hold the data that they claim.

``torch.load`` with ``weights_only=True`` runs no code, but it trusts sizes: a small compressed archive may unpack to gigabytes,
and a tensor of any size may be a view of one number (``zeros(1).expand(2**38)``), which takes that size once it is copied. torch checks
neither. This module walks the file's pickle without creating objects and requires that each tensor lies inside the data of the file.

It does not import torch: only numbers are compared.
"""

from __future__ import annotations

import math
import os
import pickletools  # nosec B403: names instructions; nothing is unpickled
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_MAX_PICKLE = 16 << 20  # bytes of the pickle, which names tensors without their data; that of an SDXL checkpoint has 0.3 MB
_MAX_MEMBERS = 200_000
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of files by torch before 1.6

# bytes per entry of torch's storage types
_STORAGES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4, "ShortStorage": 2,
    "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1, "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16, "UntypedStorage": 1,
}  # fmt: skip
_DTYPES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "uint16": 2, "uint32": 4, "uint64": 8,
}  # fmt: skip
_REBUILD = "torch._utils _rebuild_"
_HARMLESS = (
    "collections OrderedDict",
    "collections Counter",
    "_codecs encode",
    "torch Size",
    "torch device",
    "__builtin__ set",
    "builtins set",
)


class InvalidTorchFile(Exception):
    """The file claims data that it does not hold, or is not a PyTorch file. The text completes a sentence about the file."""


class NotOnlyTensors(InvalidTorchFile):
    """The file holds other objects than tensors, and loading these could run code."""


@dataclass(frozen=True)
class _Global:
    name: str  # "module name"


@dataclass(frozen=True)
class _Storage:
    size: int  # bytes
    item: int  # bytes per entry


class _Opaque:
    """A value whose contents do not matter."""


_OPAQUE = _Opaque()
_MARK = object()


def check_torch_file(path: Path) -> None:
    """Raise InvalidTorchFile unless every tensor lies inside uncompressed data of the file.

    A tensor may occur several times in the table. Raises OSError if the file cannot be read.
    """
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        if zipped:
            _check_zip(path)
        else:
            _check_legacy(file)


def _check_zip(path: Path) -> None:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError) as error:
        raise InvalidTorchFile(f"its archive cannot be read ({error})") from error
    with archive:
        members = archive.infolist()
        if len(members) > _MAX_MEMBERS:
            raise InvalidTorchFile(f"it has {len(members):,} parts")
        if len({member.filename for member in members}) != len(members):
            raise InvalidTorchFile("two of its parts have the same name")
        if any(member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size for member in members):
            raise InvalidTorchFile("its data is compressed, which PyTorch never does")
        if sum(member.file_size for member in members) > os.path.getsize(path):
            raise InvalidTorchFile("its parts overlap")
        pickles = [member for member in members if member.filename.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1 or pickles[0].file_size > _MAX_PICKLE:
            raise InvalidTorchFile("it has no table of tensors, or one that is far too large")
        folder = pickles[0].filename.removesuffix("data.pkl")
        sizes = {member.filename: member.file_size for member in members}
        try:
            with archive.open(pickles[0]) as table:
                _Walk(lambda key, _: sizes.get(f"{folder}data/{key}", -1)).run(table)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            raise InvalidTorchFile(f"its archive cannot be read ({error})") from error


def _check_legacy(file: IO[bytes]) -> None:
    """A file by torch before 1.6: four pickles (a magic number, a version, the machine, the table), then the data."""
    size = os.fstat(file.fileno()).st_size
    held: dict[str, int] = {}

    def holds(key: str, claimed: int) -> int:
        held[key] = max(claimed, held.get(key, 0))
        return claimed if sum(held.values()) <= size else -1

    walk = _Walk(holds)
    if walk.run(file) != _LEGACY_MAGIC:
        raise NotOnlyTensors("it does not begin as a PyTorch file does")
    for _ in range(3):
        walk.run(file)


class _Walk:
    """Executes the instructions of a pickle with placeholders for all objects that it would create.

    Only instructions, classes and functions that ``torch.save`` writes for tensors are accepted; others raise NotOnlyTensors.
    ``holds(key, bytes)`` returns how many bytes the file has for a storage.
    """

    def __init__(self, holds: Callable[[str, int], int]) -> None:
        self._holds = holds

    def run(self, file: Any) -> Any:
        """Execute one pickle and return its value, or a placeholder. Raises InvalidTorchFile."""
        stack: list[Any] = []
        memo: dict[int, Any] = {}
        begin = file.tell()
        try:
            for name, argument in _instructions(file, begin):
                if name == "STOP":
                    return stack[-1]
                self._step(name, argument, stack, memo)
        except (IndexError, KeyError, TypeError, ValueError, UnicodeDecodeError, OverflowError, RecursionError) as error:
            raise InvalidTorchFile("its table of tensors is damaged") from error
        raise InvalidTorchFile("its table of tensors is damaged")

    def _step(self, name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
        if name in _PLAIN:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "GLOBAL":
            stack.append(_Global(argument))
        elif name == "STACK_GLOBAL":
            names = [stack.pop(), stack.pop()]
            stack.append(_Global(f"{names[1]} {names[0]}"))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack[-int(name[-1]) :] = [tuple(stack[-int(name[-1]) :])]
        elif name == "TUPLE":
            stack.append(tuple(_since_mark(stack)))
        elif name in ("SETITEMS", "APPENDS", "ADDITEMS"):
            _since_mark(stack)
        elif name in ("SETITEM", "APPEND", "BUILD"):  # the state of a state_dict holds versions, which are not needed
            del stack[-2 if name == "SETITEM" else -1 :]
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, made = stack.pop(), stack.pop()
            stack.append(self._made(made, arguments))
        elif name not in ("PROTO", "FRAME"):
            raise NotOnlyTensors(f"it holds more than tensors ({name.lower()})")

    def _storage(self, described: Any) -> _Storage:
        if not isinstance(described, tuple) or len(described) < 5:
            raise NotOnlyTensors("it holds more than tensors")
        kind, storage, key, _, count, *_ = described
        name = storage.name.rpartition(" ")[2] if isinstance(storage, _Global) else ""
        if kind != "storage" or name not in _STORAGES or not storage.name.startswith(("torch ", "torch.storage ")):
            raise NotOnlyTensors("it holds data of an unknown type")
        if not _is_size(count) or not isinstance(key, str):
            raise InvalidTorchFile("its table of tensors is damaged")
        size = count * _STORAGES[name]
        held = self._holds(key, size)
        if size > held:
            raise InvalidTorchFile(f"it claims {size:,} bytes of data where it has {'none' if held < 0 else f'{held:,}'}")
        return _Storage(size, _STORAGES[name])

    def _made(self, function: Any, arguments: Any) -> Any:
        name = function.name if isinstance(function, _Global) else ""
        if name in (f"{_REBUILD}tensor", f"{_REBUILD}tensor_v2", f"{_REBUILD}tensor_v3"):
            _check_tensor(arguments, _item_of(arguments[6]) if name.endswith("v3") else None)
            return _OPAQUE
        if name in (f"{_REBUILD}parameter", f"{_REBUILD}parameter_with_state", "torch.nn.parameter Parameter"):
            return _OPAQUE
        if name not in _HARMLESS:
            raise NotOnlyTensors(f"it holds more than tensors ({name.replace(' ', '.')[:100] or 'an object'})")
        return _OPAQUE


_PLAIN: tuple[str, ...] = (
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINSTRING",
    "SHORT_BINSTRING",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "LONG4",
    "BINFLOAT",
)
_PLAIN += ("BINBYTES", "SHORT_BINBYTES")
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_CONSTANTS |= dict.fromkeys(("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"), _OPAQUE)


def _instructions(file: Any, begin: int) -> Iterator[tuple[str, Any]]:
    for instruction, argument, position in pickletools.genops(file):
        if (position or 0) - begin > _MAX_PICKLE:
            raise InvalidTorchFile("it has a table of tensors that is far too large")
        yield instruction.name, argument


def _since_mark(stack: list[Any]) -> list[Any]:
    """Pop the topmost mark and return the values above it."""
    place = len(stack) - 1
    while stack[place] is not _MARK:
        place -= 1
        if place < 0:
            raise IndexError
    values = stack[place + 1 :]
    del stack[place:]
    return values


def _check_tensor(arguments: Any, item: int | None) -> None:
    """Raise InvalidTorchFile unless ``(storage, offset, sizes, strides, …)``, in entries, lies inside the storage."""
    storage, offset, sizes, strides, *_ = arguments
    fine = isinstance(storage, _Storage) and isinstance(sizes, tuple) and isinstance(strides, tuple) and len(sizes) == len(strides) <= 16
    if not fine or not all(_is_size(number) for number in (offset, *sizes, *strides)):
        raise InvalidTorchFile("its table of tensors is damaged")
    item = item or storage.item
    size = math.prod(sizes) * item
    last = offset + sum((count - 1) * stride for count, stride in zip(sizes, strides, strict=True)) + 1 if size else 0
    if last * item > storage.size or size > max(storage.size, item * 64):
        raise InvalidTorchFile(f"a tensor of shape {list(sizes)} claims {size:,} bytes and has {storage.size:,}")


def _item_of(dtype: Any) -> int:
    name = dtype.name.removeprefix("torch ") if isinstance(dtype, _Global) else ""
    if name not in _DTYPES:
        raise NotOnlyTensors("it holds data of an unknown type")
    return _DTYPES[name]


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62
