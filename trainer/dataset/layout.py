"""Names of the files and folders in a prepared dataset."""

from __future__ import annotations

SCHEMA = "animelora-dataset"
SCHEMA_VERSION = 1
HEADER = "manifest.json"
ROWS = "manifest.jsonl"
REGULARISATION = "regularisation"
MASKS = "masks"
FOLDERS = ("", REGULARISATION, MASKS, f"{MASKS}/{REGULARISATION}")  # where images, captions and masks are
WORK = ".prepare"  # hidden, so that other tools do not read it as images
JOURNAL = "journal.jsonl"  # in WORK
EXPORT_MARKER = ".animelora-export"  # in an export for another trainer

LARGEST_MASK = 1 << 28  # bytes
LARGEST_MANIFEST = 4 << 30  # bytes


def caption_file(file: str) -> str:
    """The caption file of an image: ``a/b.png`` -> ``a/b.txt``."""
    return file.removesuffix(".png") + ".txt"
